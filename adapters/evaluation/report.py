"""What a reviewer asks of an evaluation: intervals over groups, subgroups, and the cases at both ends.

A task hands in `Judged`, its predictions beside the targets, unit by unit; what is here does not know the task. Nothing
that is returned names an image or a group.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinomed.adapters.fitting.data import widen
from dinomed.adapters.tasks.classify.answer import Answer
from dinomed.datasets.manifest import FIXED, Manifest
from dinomed.errors import UsageError
from dinomed.metrics.bootstrap import LEVEL, RESAMPLES, Statistic, bootstrap, bootstrap_mean
from dinomed.metrics.calibration import log_losses
from dinomed.metrics.classification import Predictions, classification_metrics
from dinomed.metrics.multilabel import MultilabelPredictions, multilabel_metrics
from dinomed.metrics.operating import operating_point

FEW = 20
"""Groups below which a subgroup says little, and is flagged."""
MAX_VALUES = 30
_NUMBERS = 8  # a column of more different numbers than this is cut into quarters


class Judged(ABC):
    """N predictions beside their truths.

    `manifest` has a row a unit (of a group, its first image), `groups` what is resampled, `scores` (N,) how good each
    prediction is, for the best and worst cases.
    """

    manifest: Manifest
    groups: list[str]
    scores: np.ndarray
    headline: tuple[str, ...]
    """The metrics that get intervals."""

    @abstractmethod
    def metrics(self, rows: Sequence[int]) -> dict[str, Any]:
        """All metrics over some units."""

    @abstractmethod
    def statistic(self, rows: Sequence[int]) -> Statistic:
        """Counts (R, len(rows)) -> float (R, len(headline)), for the bootstrap."""

    def intervals(self, rows: Sequence[int], resamples: int = RESAMPLES, seed: int = 0) -> dict[str, dict[str, Any]]:
        """Of each metric of the headline its `value`, `low` and `high`, over groups."""
        statistic = self.statistic(rows)
        point = statistic(np.ones((1, len(rows))))[0]
        found = bootstrap(statistic, [self.groups[i] for i in rows], resamples=resamples, seed=seed)
        return {
            name: {"value": float(value), "low": one.low, "high": one.high, "undefined": one.undefined}
            for name, value, one in zip(self.headline, point, found, strict=True)
        }

    def count_groups(self, rows: Sequence[int]) -> int:
        return len({self.groups[i] for i in rows})


@dataclass
class JudgedClasses(Judged):
    """A classifier's answers: `targets` as in `dinomed.adapters.heads.solve.Examples`, `probabilities` (N, K), and the
    `names` of K classes and of those that only occur here."""

    manifest: Manifest
    groups: list[str]
    targets: np.ndarray
    probabilities: np.ndarray
    names: list[str]
    answer: Answer

    def __post_init__(self) -> None:
        self.wide = widen(self.probabilities, len(self.names))
        self.headline = ("auroc", "auprc", "ece", "brier", "nll")
        if self.answer.multilabel:
            filled = np.nan_to_num(self.wide)
            own = np.where(np.isnan(self.targets), np.nan, np.where(self.targets == 1, filled, 1 - filled))
            self.scores = np.nan_to_num(np.nanmean(own, axis=1)) if len(own) else np.zeros(0)
        else:
            self.headline = ("auroc", "balanced_accuracy", "accuracy", *self.headline[1:])
            self.scores = np.exp(-np.nan_to_num(log_losses(self.targets, self.wide), nan=np.inf))

    @property
    def thresholds(self) -> list[float | None]:
        """Of each name that which was chosen on val; None for one that only occurs here."""
        return [*self.answer.thresholds, *[None] * len(self.names)][: len(self.names)]

    def metrics(self, rows: Sequence[int]) -> dict[str, Any]:
        own = list(rows)
        if self.answer.multilabel:
            return multilabel_metrics(self.targets[own], self.wide[own], self.names, self.thresholds)
        return classification_metrics(self.targets[own], self.wide[own], self.names)

    def statistic(self, rows: Sequence[int]) -> Statistic:
        own = list(rows)
        kind = MultilabelPredictions if self.answer.multilabel else Predictions
        predictions = kind(self.targets[own], self.wide[own], self.names)
        return lambda counts: np.stack([predictions.values(counts)[name] for name in self.headline], axis=1)

    def positives(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The units where a class is known, and whether they have it."""
        own = self.targets[:, index] if self.targets.ndim == 2 else (self.targets == index).astype(float)
        rows = np.flatnonzero(~np.isnan(own))
        return rows, own[rows] == 1

    def operating(self, resamples: int = RESAMPLES) -> dict[str, dict[str, Any]]:
        """Of each class, against the rest, what happens at the threshold that was chosen on val, with intervals."""
        found = {}
        for index, (name, threshold) in enumerate(zip(self.names, self.thresholds, strict=True)):
            if threshold is None:
                continue
            rows, positive = self.positives(index)
            scores = self.wide[rows, index]
            called = (scores >= threshold).astype(float)
            columns = np.stack([np.where(positive, called, np.nan), np.where(positive, np.nan, 1 - called)], axis=1)
            sides = bootstrap_mean(columns, [self.groups[i] for i in rows], resamples=resamples)
            found[name] = operating_point(positive, scores, threshold) | {
                f"{side}_{end}": getattr(one, end)
                for side, one in zip(("sensitivity", "specificity"), sides, strict=True)
                for end in ("low", "high")
            }
        return found


@dataclass
class JudgedValues(Judged):
    """A segmenter's or a depth estimator's images: `columns` of values (N,), nan where undefined, whose means are the
    metrics; `summary` gives all metrics of some rows. The first column is the score (`lower_is_better`: its
    negative)."""

    manifest: Manifest
    groups: list[str]
    columns: Mapping[str, np.ndarray]
    summary: Any
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        self.headline = tuple(self.columns)
        first = np.nan_to_num(next(iter(self.columns.values())), nan=np.inf if self.lower_is_better else -np.inf)
        self.scores = -first if self.lower_is_better else first
        self._table = np.stack(list(self.columns.values()), axis=1)

    def metrics(self, rows: Sequence[int]) -> dict[str, Any]:
        return dict(self.summary(list(rows)))

    def statistic(self, rows: Sequence[int]) -> Statistic:
        values = self._table[list(rows)]
        known = ~np.isnan(values)
        filled = np.where(known, values, 0.0)

        def means(counts: np.ndarray) -> np.ndarray:
            weight = counts @ known
            return np.divide(counts @ filled, weight, out=np.full(weight.shape, np.nan), where=weight > 0)

        return means


def check_columns(manifest: Manifest, columns: Sequence[str]) -> None:
    """Raises a `UsageError` for a column that is not there, is empty, or would name images or patients."""
    for column in columns:
        manifest.column(column)  # says which is nearest
        if column in (*FIXED, "group", "mask", "split"):
            raise UsageError(f"--by {column}: this column is no property of a patient or picture; give another")
        if not manifest.has(column):
            raise UsageError(f"--by {column}: the column is empty; leave it out")


def split_subgroups(manifest: Manifest, column: str) -> list[tuple[str, list[int]]]:
    """(value, rows) of a column, in order; numbers of which there are many are cut at their quartiles; rows without a
    value come last.

    Raises:
        UsageError: it has too many values to be a property.
    """
    values = manifest.column(column)
    numbers = _numbers(values)
    if numbers is not None and len(set(numbers[~np.isnan(numbers)])) > _NUMBERS:
        named: list[str | None] = _quarters(numbers)
        rising = [named[i] for i in np.argsort(numbers, kind="stable")]  # those that are not known come last
        order = list(dict.fromkeys(name for name in rising if name is not None))
    else:
        named = [None if value is None else str(value) for value in values]
        counts = Counter(value for value in named if value is not None)
        if len(counts) > MAX_VALUES:
            raise UsageError(
                f"--by {column}: it has {len(counts)} different values; give a column of at most {MAX_VALUES}"
            )
        order = sorted(counts)
    found = [(name, [i for i, own in enumerate(named) if own == name]) for name in order]
    missing = [i for i, own in enumerate(named) if own is None]
    return [*found, *([("not known", missing)] if missing else [])]


def by_subgroup(judged: Judged, columns: Sequence[str], resamples: int = RESAMPLES) -> dict[str, list[dict[str, Any]]]:
    """For each column a row a value: `value`, `n` units, `groups`, `few` (fewer than 20 groups), and `intervals`."""
    out: dict[str, list[dict[str, Any]]] = {}
    for column in columns:
        out[column] = []
        for value, rows in split_subgroups(judged.manifest, column):
            groups = judged.count_groups(rows)
            row = {"value": value, "n": len(rows), "groups": groups, "few": groups < FEW}
            out[column].append({**row, "intervals": judged.intervals(rows, resamples)})
    return out


def summarize(judged: Judged, columns: Sequence[str] = (), resamples: int = RESAMPLES) -> dict[str, Any]:
    """`metrics`, `intervals`, `bootstrap` (how they were made), `subgroups`; of a classifier also `operating`."""
    rows = range(len(judged.groups))
    found: dict[str, Any] = {
        "metrics": judged.metrics(rows),
        "intervals": judged.intervals(rows, resamples),
        "bootstrap": {
            "over": "groups" if judged.manifest.has("group") else "images",
            "groups": judged.count_groups(rows),
            "resamples": resamples,
            "level": LEVEL,
            "seed": 0,
        },
    }
    if isinstance(judged, JudgedClasses):
        found["operating"] = judged.operating(resamples)
        found["temperature"] = judged.answer.temperature
    if columns:
        found["subgroups"] = by_subgroup(judged, columns, resamples)
    return found


def extremes(judged: Judged, count: int) -> tuple[list[int], list[int]]:
    """The best and the worst `count` units, each from its end; none is in both."""
    order = np.argsort(-judged.scores, kind="stable").tolist()
    take = min(count, len(order) // 2)
    return order[:take], order[::-1][: min(count, len(order) - take)]


def _numbers(values: Sequence[Any]) -> np.ndarray | None:
    try:
        found = np.array([np.nan if value is None else float(value) for value in values])
    except ValueError:
        return None
    return np.where(np.isfinite(found), found, np.nan)


def _quarters(numbers: np.ndarray) -> list[str | None]:
    edges = np.unique(np.nanquantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
    which = np.clip(np.searchsorted(edges, numbers, side="left"), 1, len(edges) - 1)
    names = [f"{'from' if i == 1 else 'over'} {edges[i - 1]:g} to {edges[i]:g}" for i in range(1, len(edges))]
    return [None if np.isnan(number) else names[i - 1] for number, i in zip(numbers, which, strict=True)]
