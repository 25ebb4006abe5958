"""Prediction sets of an ensemble of K members, each trained without one fold: CV+ (cross-conformal prediction).

The score of a calibration image comes from the member that was not trained on it. The score of a class of a new image
is compared with the calibration images of fold k by member k alone, so both sides of a comparison come from the same
model, which was trained on neither image (Barber, Candes, Ramdas and Tibshirani 2021, "Predictive inference with the
jackknife+", section 3; for sets of classes Romano, Sesia and Candes 2020, arXiv 2006.02544, section 2.3). A class is
left out if calibration images of the weight `coverage` or more have a higher probability of their true class than it
has.

With a = 1 - coverage and n independent images, the coverage of CV+ is at least 1 - 2a - min(2 (1 - 1/K) / (n/K + 1),
(1 - K/n) / (K + 1)) (Barber et al., theorem 4); usually it is near 1 - a. This is no guarantee for the sets here: the
theorem requires that a member saw nothing of its fold, but the epoch, the temperature and settings of a member were
chosen on it. As in `conformal`, each group has the weight of one image, and the coverage is that of one image of a new
group; the theorem does not treat such weights.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import Field, model_validator

from dinomed.config import Config
from dinomed.metrics.bootstrap import group_index
from dinomed.metrics.uncertainty.conformal import required_groups

MAX_STEPS = 500
"""Largest number of stored calibration probabilities of a fold. More are thinned out so that sets only become larger:
the weight of the images that leave a class out is at most 1 / 500 too small."""


class FoldSteps(Config):
    """The probabilities of the true class of the images of one fold, as its member predicts them.

    Attributes:
        probabilities: falling.
        weights: for each of them the weight of the images of the fold at or above it, rising.
    """

    probabilities: tuple[float, ...] = Field(max_length=MAX_STEPS)
    weights: tuple[float, ...]

    @model_validator(mode="after")
    def _fits(self) -> "FoldSteps":
        if len(self.probabilities) != len(self.weights):
            raise ValueError("probabilities and weights differ in length")
        if (np.diff(self.probabilities) >= 0).any() or (np.diff(self.weights) <= 0).any():
            raise ValueError("probabilities do not fall, or weights do not rise")
        return self

    def weight_above(self, values: np.ndarray) -> np.ndarray:
        """Return the weight of the images of the fold with a higher probability than each of `values`, float64."""
        rising = -np.array(self.probabilities)
        count = np.searchsorted(rising, -np.asarray(values, np.float64), side="left")
        return np.asarray(np.array([0.0, *self.weights])[count])


class CrossLimits(Config):
    """The calibration of CV+ sets.

    Attributes:
        coverage: coverage that the sets are made for; the module says why it is not guaranteed.
        groups: number of groups of all folds.
        folds: the calibration images of each fold, in the order of the members.
    """

    coverage: float = Field(gt=0, lt=1)
    groups: int = Field(ge=0)
    folds: tuple[FoldSteps, ...] = Field(min_length=2)

    @property
    def problem(self) -> str | None:
        """The reason why the sets hold all classes, or None."""
        needed = required_groups(self.coverage)
        if self.groups < needed:
            return f"the folds have {self.groups} groups, and {needed} are needed for a coverage of {self.coverage:g}"
        return None

    def sets(self, probabilities: np.ndarray) -> np.ndarray:
        """Return which classes are in the set of each image, bool (N, classes).

        The most probable class of the mean is always in it.

        Args:
            probabilities: of each member, float (members, N, classes).
        """
        above = sum(fold.weight_above(part) for fold, part in zip(self.folds, probabilities, strict=True))
        most = probabilities.mean(axis=0, dtype=np.float64)
        is_most = np.arange(most.shape[1]) == most.argmax(axis=1)[:, None]
        return np.asarray((above < self.coverage - 1e-12) | is_most)


def cross_limits(of_label: Sequence[np.ndarray], groups: Sequence[Sequence[object]], coverage: float) -> CrossLimits:
    """Calibrate CV+ sets on the images of all folds.

    Args:
        of_label: for each fold float (n,), the probability of the true class of its images by the member that was not
            trained on them; -1 for a class that this member does not know.
        groups: for each fold the group of its images, n; no group is in two folds.
        coverage: in (0, 1).
    """
    counts, total = [], 0
    for names in groups:
        index = group_index(names)
        sizes = np.bincount(index)
        counts.append(sizes[index])
        total += len(sizes)
    folds = tuple(_steps(values, 1 / ((total + 1) * sizes)) for values, sizes in zip(of_label, counts, strict=True))
    return CrossLimits(coverage=coverage, groups=total, folds=folds)


def _steps(values: np.ndarray, weights: np.ndarray) -> FoldSteps:
    """Return the steps of a fold from its probabilities and weights, both (n,)."""
    order = np.argsort(-values, kind="stable")
    ordered = np.asarray(values, np.float64)[order]
    ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])  # the last image of equal probabilities
    totals = weights[order].cumsum()[ends]
    if len(ends) > MAX_STEPS:
        levels = np.linspace(totals[-1] / MAX_STEPS, totals[-1], MAX_STEPS)
        chosen = np.unique(np.searchsorted(totals, levels - 1e-12).clip(0, len(ends) - 1))
        ends, totals = ends[chosen], totals[chosen]
    return FoldSteps(probabilities=tuple(ordered[ends].tolist()), weights=tuple(totals.tolist()))
