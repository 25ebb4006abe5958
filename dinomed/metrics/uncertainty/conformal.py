"""Conformal prediction sets of exclusive classes, calibrated by group, and their measured coverage.

The set of an image holds each class whose probability reaches a limit, and always the most probable class. The limit is
chosen on calibration images, so that the set of a new image holds its true class with a stated probability (coverage),
whatever the classifier is. The score is that of LAC, 1 minus the probability of the true class (Sadinle et al. 2019;
Angelopoulos and Bates 2023, "A gentle introduction to conformal prediction", section 1). It was preferred to APS and
RAPS (the same introduction, section 2.1; Angelopoulos et al. 2021) for three reasons: its sets are the smallest on
average; the same image always has the same set, while APS keeps its coverage only with random numbers; and it has no
setting to be chosen on further images. Its weakness is that rare classes may be covered less often than frequent ones,
so the coverage of each class is measured too.

Images of a patient are alike, so that they do not count as independent. Each calibration group has the weight of one
image, divided among its images (hierarchical conformal prediction, Lee, Barber and Willett 2023, arXiv 2306.06342). The
coverage then holds for one image, drawn at random, of a new group of the same kind. It is measured the same way: as the
mean over groups of the share of their images that are covered.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dinomed.metrics.bootstrap import LEVEL, RESAMPLES, bootstrap_mean, group_index
from dinomed.metrics.ratios import divide, row_means

COVERAGE = 0.9
"""Default coverage of prediction sets."""


def conformal_limit(of_label: np.ndarray, groups: Sequence[object], coverage: float) -> float:
    """Return the probability that a class needs to be in a set.

    With K groups, the calibration images of each group have the weight 1 / (K + 1) together, and a new group has the
    rest. The limit is the largest probability for which the images at or above it have the weight `coverage`. With too
    few groups (fewer than coverage / (1 - coverage)) it is 0: the sets then hold all classes.

    Args:
        of_label: float (N,), probability of the true class of each calibration image, or -1 for a class that the
            classifier does not know, which no set can hold.
        groups: group of each image, N.
        coverage: probability with which a set holds the true class, in (0, 1).

    >>> conformal_limit(np.array([0.9, 0.8, 0.7, 0.2]), list("abcd"), 0.6)
    0.7
    >>> conformal_limit(np.array([0.9, 0.8, 0.7, 0.2]), list("abcd"), 0.9)
    0.0
    """
    assert 0 < coverage < 1, coverage
    index = group_index(groups)
    sizes = np.bincount(index)
    order = np.argsort(-of_label, kind="stable")
    weights = (1 / ((len(sizes) + 1) * sizes[index]))[order].cumsum()
    enough = np.flatnonzero(weights >= coverage - 1e-12)
    return max(0.0, float(of_label[order[enough[0]]])) if len(enough) else 0.0


def required_groups(coverage: float) -> int:
    """Return the smallest number of calibration groups with which sets can be smaller than all classes.

    >>> required_groups(0.9), required_groups(0.95)
    (9, 19)
    """
    return int(np.ceil(coverage / (1 - coverage) - 1e-9))


def prediction_sets(probabilities: np.ndarray, limit: float) -> np.ndarray:
    """Return which classes are in the set of each image, bool (N, K), from probabilities (N, K).

    >>> prediction_sets(np.array([[0.6, 0.3, 0.1], [0.4, 0.3, 0.3]]), 0.5).tolist()
    [[True, False, False], [True, False, False]]
    """
    most = np.arange(probabilities.shape[1]) == probabilities.argmax(axis=1)[:, None]
    return np.asarray((probabilities >= limit) | most)


def set_metrics(
    labels: np.ndarray,
    sets: np.ndarray,
    groups: Sequence[object],
    names: Sequence[str],
    *,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Compute the coverage and the size of prediction sets over groups, with intervals.

    Args:
        labels: int (N,), indices into `names`.
        sets: bool (N, K), K at most the number of names; a set never holds the names beyond K.
        groups: group of each image.
        names: the K classes, then classes that the classifier does not know.
        resamples: number of bootstrap resamples of the groups.

    Returns:
        `coverage` and `mean_size`, means over groups of their mean, each with `_low` and `_high`; `groups`; `sizes`,
        the number of images with a set of each size; and `per_class`: name to `groups`, `coverage` and its interval.
    """
    wide = np.pad(sets, ((0, 0), (0, len(names) - sets.shape[1])))
    covered, size = wide[np.arange(len(labels)), labels].astype(float), sets.sum(axis=1)
    columns = [covered, size, *(np.where(labels == index, covered, np.nan) for index in range(len(names)))]
    index = group_index(groups)
    means = np.stack([_group_means(column, index) for column in columns], axis=1)
    intervals = bootstrap_mean(means, list(range(len(means))), resamples=resamples, level=LEVEL)
    known = ~np.isnan(means)
    values = row_means(means.T)

    def describe(name: str, place: int) -> dict[str, float]:
        low, high = intervals[place].low, intervals[place].high
        return {name: float(values[place]), f"{name}_low": low, f"{name}_high": high}

    return {
        **describe("coverage", 0),
        **describe("mean_size", 1),
        "groups": len(means),
        "sizes": {str(value): int((size == value).sum()) for value in np.unique(size)},
        "per_class": {
            name: {"groups": int(known[:, place].sum()), **describe("coverage", place)}
            for place, name in enumerate(names, start=2)
        },
    }


def _group_means(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the mean of the defined values of each group, (groups,); nan for a group without one."""
    known = ~np.isnan(values)
    count = np.bincount(index, weights=known)
    total = np.bincount(index, weights=np.where(known, values, 0.0))
    return divide(total, count)
