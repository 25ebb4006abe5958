"""Evaluated units: predictions beside their targets, from which metrics, intervals and subgroups are computed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinomed.datasets.manifest import Manifest
from dinomed.metrics.bootstrap import RESAMPLES, Statistic, bootstrap


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


class EvaluatedUnits(ABC):
    """N units (images, or groups of images), each with its prediction and its target.

    Attributes:
        manifest: one row for each unit; of a group, its first image.
        groups: the group of each unit, which the bootstrap resamples.
        scores: float (N,), how good each prediction is; orders the best and worst cases.
        headline: names of the metrics that get intervals.
    """

    manifest: Manifest
    groups: list[str]
    scores: np.ndarray
    headline: tuple[str, ...]

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

    def intervals(self, rows: Sequence[int], resamples: int = RESAMPLES, seed: int = 0) -> dict[str, dict[str, Any]]:
        """Return `value`, `low`, `high` and `undefined` of each metric of the headline, resampled over groups."""
        statistic = self.statistic(rows)
        point = statistic(np.ones((1, len(rows))))[0]
        intervals = bootstrap(statistic, [self.groups[i] for i in rows], resamples=resamples, seed=seed)
        return {
            name: {
                "value": float(value),
                "low": interval.low,
                "high": interval.high,
                "undefined": interval.undefined,
            }
            for name, value, interval in zip(self.headline, point, intervals, strict=True)
        }

    def count_groups(self, rows: Sequence[int]) -> int:
        """Return the number of different groups among some units."""
        return len({self.groups[i] for i in rows})


@dataclass
class EvaluatedValues(EvaluatedUnits):
    """Images with a value for each metric, whose means are the metrics.

    Args:
        columns: name of the metric to its values, float (N,), nan where undefined. The first column is the score.
        summary: rows to all metrics over them.
        lower_is_better: whether a small value of the first column is a good one; the score is then its negative.
    """

    manifest: Manifest
    groups: list[str]
    columns: Mapping[str, np.ndarray]
    summary: Callable[[Sequence[int]], Mapping[str, Any]]
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
