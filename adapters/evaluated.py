"""Evaluated units: predictions beside their targets, from which metrics, intervals and subgroups are computed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from dinomed.datasets.manifest import Manifest
from dinomed.metrics.bootstrap import RESAMPLES, Statistic, bootstrap, means_of_columns
from dinomed.metrics.uncertainty.abstention import AbstentionTable

MIN_GROUPS, MIN_CASES = 20, 10
"""A subgroup is judged if it has this many groups, and for the rates of a class this many groups with and without it.

With fewer the 95% interval of a rate is wider than 0.6 (Clopper and Pearson 1934, for 5 of 10)."""


LIKENESS = "likeness to the training images"
"""Name of the confidence that is minus the distance from the training images."""


@dataclass(frozen=True)
class ReportTable:
    """A table on the page of an evaluation. `rows` hold text, numbers and None (undefined)."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    note: str = ""


def table_of_further_metrics(report: Mapping[str, Any], titles: Mapping[str, str]) -> list[ReportTable]:
    """Return a table of the numbers among the metrics that have no interval; none if there is no such metric."""
    rows = [
        (titles.get(name, name), value)
        for name, value in report["metrics"].items()
        if name != "n" and name not in report["intervals"] and isinstance(value, int | float | None)
    ]
    return [ReportTable("Further metrics", ("metric", "value"), rows)] if rows else []


@dataclass(frozen=True)
class SubgroupMeasures:
    """M measures that can be compared between S subgroups.

    Attributes:
        names: name of each measure and its class, or None for a measure of all classes.
        lower_is_better: bool (M,), whether a small value is a good one.
        statistics: for each subgroup a function of counts (R, its rows) to values (R, M).
        judged: bool (S, M), whether the subgroup is large enough.
        classes: the classes over which the means of classes are computed; empty where there are none.
        thresholds: class to the threshold of its sensitivity and false positive rate.
    """

    names: list[tuple[str, str | None]]
    lower_is_better: np.ndarray
    statistics: list[Statistic]
    judged: np.ndarray
    classes: list[str] = field(default_factory=list)
    thresholds: dict[str, float] = field(default_factory=dict)


class EvaluatedUnits(ABC):
    """N units (images, or groups of images), each with its prediction and its target.

    Attributes:
        manifest: one row for each unit; of a group, its first image.
        groups: the group of each unit, which the bootstrap resamples.
        targets: labels of the units, (N,) or (N, L); None where targets are files, such as masks.
        scores: float (N,), how good each prediction is; orders the best and worst cases.
        headline: names of the metrics that get intervals.
        errors: those of which a small value is a good one.
        confidences: name to float (N,), how sure each prediction is; for the risk-coverage curves.
        losses: float (N,), the loss of each prediction, nan where undefined; None without confidences.
        loss_name: name of the loss.
        abstention: thresholds of the first confidence, measured on val; None if there are none.
    """

    manifest: Manifest
    groups: list[str]
    targets: np.ndarray | None
    scores: np.ndarray
    headline: tuple[str, ...]
    errors: Collection[str] = ()
    confidences: dict[str, np.ndarray]
    losses: np.ndarray | None = None
    loss_name: str = ""
    abstention: AbstentionTable | None = None

    @abstractmethod
    def metrics(self, rows: Sequence[int]) -> dict[str, Any]:
        """Return all metrics over some units."""

    @abstractmethod
    def statistic(self, rows: Sequence[int]) -> Statistic:
        """Return the function of the bootstrap: counts (R, len(rows)) to float (R, len(headline))."""

    def details(self, resamples: int = RESAMPLES) -> dict[str, Any]:
        """Return what else the report of all units holds."""
        return {}

    def describe_unit(self, unit: int, titles: Mapping[str, str]) -> str:
        """Return the caption of a case; `titles` are readable names of metrics."""
        name = self.headline[0]
        return f"{titles.get(name, name)} {abs(self.scores[unit]):.2f}"

    def intervals(self, rows: Sequence[int], resamples: int = RESAMPLES) -> dict[str, dict[str, Any]]:
        """Return `value`, `low`, `high` and `undefined` of each metric of the headline, resampled over groups."""
        statistic = self.statistic(rows)
        point = statistic(np.ones((1, len(rows))))[0]
        intervals = bootstrap(statistic, [self.groups[i] for i in rows], resamples=resamples)
        return {
            name: {
                "value": float(value),
                "low": interval.low,
                "high": interval.high,
                "undefined": interval.undefined,
            }
            for name, value, interval in zip(self.headline, point, intervals, strict=True)
        }

    def subgroup_measures(self, subgroups: Sequence[Sequence[int]]) -> SubgroupMeasures:
        """Return the measures that are compared between subgroups (lists of units); by default the headline."""
        judged = [
            [self.count_groups(self.defined(name, rows)) >= MIN_GROUPS for name in self.headline] for rows in subgroups
        ]
        return SubgroupMeasures(
            [(name, None) for name in self.headline],
            np.array([name in self.errors for name in self.headline]),
            [self.statistic(rows) for rows in subgroups],
            np.array(judged, bool).reshape(len(subgroups), len(self.headline)),
        )

    def defined(self, metric: str, rows: Sequence[int]) -> Sequence[int]:
        """Return those of some units for which a metric of the headline is defined; by default all."""
        return rows

    def count_groups(self, rows: Sequence[int]) -> int:
        """Return the number of different groups among some units."""
        return len({self.groups[i] for i in rows})


@dataclass
class EvaluatedValues(EvaluatedUnits):
    """Images with a value for each metric, whose means are the metrics.

    Args:
        columns: name of the metric to its values, float (N,), nan where undefined. The first column is the score.
        summary: rows to all metrics over them.
        errors: names of the columns of which a small value is a good one. If the first is one, the score is its
            negative. The loss of an image is its first value, or 1 minus it if a large value is a good one.
        confidences: name to float (N,), as in `EvaluatedUnits`.
        abstention: thresholds of the first confidence, measured on val.
        cases: the comparison of each image, from which `join_values` makes another summary.
    """

    manifest: Manifest
    groups: list[str]
    columns: Mapping[str, np.ndarray]
    summary: Callable[[Sequence[int]], Mapping[str, Any]]
    errors: Collection[str] = ()
    confidences: dict[str, np.ndarray] = field(default_factory=dict)
    abstention: AbstentionTable | None = None
    cases: Sequence[Any] = ()

    def __post_init__(self) -> None:
        self.headline, self.targets = tuple(self.columns), None
        first = self.headline[0]
        self.losses = self.columns[first] if first in self.errors else 1 - self.columns[first]
        self.loss_name = first if first in self.errors else f"1 - {first}"
        sign = -1.0 if self.headline[0] in self.errors else 1.0
        self.scores = np.nan_to_num(sign * self.columns[self.headline[0]], nan=-np.inf)
        self._table = np.stack(list(self.columns.values()), axis=1)

    def metrics(self, rows: Sequence[int]) -> dict[str, Any]:
        return dict(self.summary(list(rows)))

    def defined(self, metric: str, rows: Sequence[int]) -> Sequence[int]:
        return [row for row in rows if not np.isnan(self.columns[metric][row])]

    def statistic(self, rows: Sequence[int]) -> Statistic:
        return means_of_columns(self._table[list(rows)])


def join_values(
    parts: Sequence[EvaluatedValues], summarize: Callable[[Sequence[Any]], Mapping[str, Any]]
) -> EvaluatedValues:
    """Join the images of several evaluations with the same metrics.

    Args:
        parts: evaluations with `cases`.
        summarize: function from cases to all metrics over them.
    """
    first, cases = parts[0], [case for part in parts for case in part.cases]
    return EvaluatedValues(
        join_manifests([part.manifest for part in parts]),
        [group for part in parts for group in part.groups],
        {name: np.concatenate([part.columns[name] for part in parts]) for name in first.columns},
        lambda rows: summarize([cases[row] for row in rows]),
        errors=first.errors,
        cases=cases,
    )


def join_manifests(parts: Sequence[Manifest]) -> Manifest:
    """Return the rows of all parts of one manifest, part by part."""
    return replace(parts[0], table=pa.concat_tables([part.table for part in parts]))
