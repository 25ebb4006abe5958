"""Gaps of measures between subgroups: the worst and the best subgroup, their difference, and its bootstrap interval.

The interval is one of the difference of the two named subgroups. All subgroups are resampled together by group, so
that a patient with images in two subgroups is drawn for both. The worst and the best of S subgroups are chosen from the
same data; with many subgroups, or small ones, they differ by chance too, and the gap is then too large on average.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinomed.metrics.bootstrap import RESAMPLES, Interval, Statistic, bootstrap


@dataclass(frozen=True)
class Gap:
    """The difference of a measure between two subgroups.

    Attributes:
        worst: index of the subgroup with the worst value.
        best: index of the subgroup with the best value.
        value: absolute difference of the two values, 0 or more.
        interval: of the difference, signed so that `value` is positive; below 0 the order is reversed.
    """

    worst: int
    best: int
    value: float
    interval: Interval


def measure_gaps(
    statistics: Sequence[Statistic],
    rows: Sequence[Sequence[int]],
    groups: Sequence[object],
    judged: np.ndarray,
    lower_is_better: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[np.ndarray, list[Gap | None]]:
    """Find the worst and the best of S subgroups for each of M measures.

    Args:
        statistics: for each subgroup a function of counts (R, its rows) to values (R, M); nan where undefined.
        rows: rows of each subgroup. A row may be in several subgroups, or in none.
        groups: group (patient, lesion or video) of every row.
        judged: bool (S, M), whether a subgroup is large enough for a measure.
        lower_is_better: bool (M,), whether a small value is a good one.
        resamples: number of bootstrap resamples of the groups.
        seed: of the resamples.

    Returns:
        The values, float (S, M), also those that are not judged; and for each measure its gap, or None with fewer than
        two judged and defined subgroups.
    """
    values = np.stack([statistic(np.ones((1, len(part))))[0] for statistic, part in zip(statistics, rows, strict=True)])
    usable = judged & ~np.isnan(values)
    compared = np.flatnonzero(usable.sum(axis=0) >= 2)
    if not len(compared):
        return values, [None] * values.shape[1]
    goodness = np.where(lower_is_better, -values, values)[:, compared]
    worst = np.where(usable[:, compared], goodness, np.inf).argmin(axis=0)
    best = np.where(usable[:, compared], goodness, -np.inf).argmax(axis=0)
    best = np.where(best == worst, _other_subgroup(usable[:, compared], worst), best)  # all values are equal
    used = sorted({*worst.tolist(), *best.tolist()})
    order = {subgroup: place for place, subgroup in enumerate(used)}
    drawn = sorted(set().union(*(rows[subgroup] for subgroup in used)))
    place = {row: index for index, row in enumerate(drawn)}
    members = [np.array([place[row] for row in rows[subgroup]]) for subgroup in used]
    sign = np.where(lower_is_better, -1.0, 1.0)[compared]
    pairs = np.array([order[i] for i in best]), np.array([order[i] for i in worst]), np.arange(len(compared))

    def differences(counts: np.ndarray) -> np.ndarray:
        table = np.stack(
            [statistics[s](counts[:, part])[:, compared] for s, part in zip(used, members, strict=True)], 1
        )
        return sign * (table[:, pairs[0], pairs[2]] - table[:, pairs[1], pairs[2]])

    intervals = bootstrap(differences, [groups[row] for row in drawn], resamples=resamples, seed=seed)
    gaps: list[Gap | None] = [None] * values.shape[1]
    for column, low, high, interval in zip(compared, worst, best, intervals, strict=True):
        size = float(abs(values[high, column] - values[low, column]))
        gaps[column] = Gap(int(low), int(high), size, interval)
    return values, gaps


def _other_subgroup(usable: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return for each measure the first usable subgroup that is not the chosen one, int (M,)."""
    free = usable.copy()
    free[chosen, np.arange(len(chosen))] = False
    return free.argmax(axis=0)
