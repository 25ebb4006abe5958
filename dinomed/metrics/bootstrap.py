"""Confidence intervals by the cluster bootstrap (Field and Welsh 2007), which resamples groups (patients, lesions), not
images.

As many groups as there are, are drawn with replacement; a group brings all of its images each time it is drawn. An
interval lies between percentiles of the statistic over the resamples (Efron 1979), with a seed.

Policy: a resample in which the statistic is undefined (for example without an image of a class) is left out and
counted. With fewer than two groups, or with more than half of the resamples undefined, the interval is nan.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES, LEVEL = 1000, 0.95
_CHUNK = 2**17  # counts in memory at once: 1 MB, which fits into the processor's cache (2**21 took twice as long)
Statistic = Callable[[np.ndarray], np.ndarray]
"""Function of counts (R, N), how often each image was drawn, to values (R,) or (R, M); nan where undefined."""


@dataclass(frozen=True)
class Interval:
    """Percentiles of a statistic. `undefined` is the number of resamples that were left out."""

    low: float
    high: float
    undefined: int = 0


def draw_groups(groups: Sequence[object], resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each of N images is drawn, float64 (R, N), for R resamples at a time, `resamples` rows in total.

    The rows depend on the seed and on the groups in their order of appearance.
    """
    index = group_index(groups)
    count, rng = int(index.max(initial=-1)) + 1, np.random.default_rng(seed)
    size = max(1, _CHUNK // max(len(index), 1))
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        drawn = rng.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)[:, index].astype(np.float64)


def bootstrap(
    statistic: Statistic, groups: Sequence[object], *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> list[Interval]:
    """Compute the confidence interval of each of the M values of `statistic`.

    Args:
        groups: group (patient, lesion or video) of each of the N images, hashable. An image without a group has its
            own.
        level: share of the resamples inside the interval; 0.95 is the 2.5th to the 97.5th percentile.

    >>> values = np.arange(10.0)
    >>> interval = bootstrap(lambda counts: counts @ values / counts.sum(axis=1), list(range(10)))[0]
    >>> interval.low < 4.5 < interval.high
    True
    """
    assert 0 < level < 1, level
    if len(set(groups)) < 2:
        ones = np.ones((1, len(groups)))
        return [Interval(np.nan, np.nan, resamples)] * np.atleast_2d(statistic(ones).T).shape[0]
    parts = [statistic(counts) for counts in draw_groups(groups, resamples, seed)]
    values = np.concatenate([part[:, None] if part.ndim == 1 else part for part in parts])
    return [_interval(column, level) for column in values.T]


def bootstrap_mean(
    values: np.ndarray, groups: Sequence[object], *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> list[Interval]:
    """Compute the intervals of the means of M columns (N, M), or of one column (N,). A nan is left out of its mean."""
    columns = values[:, None] if values.ndim == 1 else values
    return bootstrap(means_of_columns(columns), groups, resamples=resamples, seed=seed, level=level)


def means_of_columns(columns: np.ndarray) -> Statistic:
    """Return the statistic that takes the mean of each column, float (N, M). A nan is left out of its mean."""
    known = ~np.isnan(columns)
    filled = np.where(known, columns, 0.0)

    def means(counts: np.ndarray) -> np.ndarray:
        weight = counts @ known
        return np.divide(counts @ filled, weight, out=np.full(weight.shape, np.nan), where=weight > 0)

    return means


def group_index(groups: Sequence[object]) -> np.ndarray:
    """Return the groups as numbers from 0 in their order of appearance, int64 (N,)."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], np.int64)


def _interval(values: np.ndarray, level: float) -> Interval:
    defined = values[~np.isnan(values)]
    undefined = len(values) - len(defined)
    if undefined > len(values) / 2 or not len(defined):
        return Interval(np.nan, np.nan, undefined)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), undefined)
