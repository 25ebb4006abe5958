"""Conformal prediction sets: coverage in simulations with and without groups, and the degenerate cases."""

import numpy as np
import pytest

from dinomed.adapters.tasks.classify.answer import Answer, SetLimit, calibrate
from dinomed.metrics.uncertainty.conformal import conformal_limit, prediction_sets, required_groups, set_metrics


def held(answer: Answer, values: np.ndarray) -> list[int]:
    """The classes in the prediction set of one row of probabilities."""
    sets = answer.prediction_sets(values[None])
    assert sets is not None
    return np.flatnonzero(sets[0]).tolist()


def draw(rng: np.random.Generator, count: int, per_group: int = 1) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Draw probabilities (N, 4) of a classifier that is overconfident, labels, and groups with a common error."""
    labels = np.repeat(rng.integers(0, 4, count), per_group)
    shift = np.repeat(rng.normal(size=(count, 4)), per_group, axis=0)
    logits = 2 * (np.eye(4)[labels] + shift + 0.3 * rng.normal(size=shift.shape))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities, labels, np.repeat(np.arange(count), per_group).tolist()


@pytest.mark.parametrize(("per_group", "coverage"), [(1, 0.9), (1, 0.8), (5, 0.9)])
def test_the_coverage_of_exchangeable_groups_is_the_stated_one(per_group: int, coverage: float) -> None:
    rng = np.random.default_rng(0)
    trials, covered = 300, []
    for _ in range(trials):
        probabilities, labels, groups = draw(rng, 40, per_group)
        limit = conformal_limit(probabilities[np.arange(len(labels)), labels], groups, coverage)
        new, new_labels, _ = draw(rng, 40)  # an image of each new group
        covered += prediction_sets(new, limit)[np.arange(40), new_labels].tolist()
    # With 40 groups the expected coverage is at least the stated one, and above it by at most 1/41 for single images.
    # The 40 images of a trial share a limit; its standard deviation is sqrt(0.9 * 0.1 / 42) = 0.046 and that of a
    # single trial's share as large, so the mean of 300 trials has 0.066 / sqrt(300) = 0.004.
    assert np.mean(covered) > coverage - 3 * 0.004
    # For groups the theory gives no upper bound; 0.02 more would be another limit than the one of 40 groups.
    assert np.mean(covered) < coverage + 1 / 41 + 3 * 0.004 + (0.02 if per_group > 1 else 0)


def test_images_of_a_group_share_the_weight_of_one_image() -> None:
    of_label = np.array([0.9, 0.8, 0.7, 0.6])
    once = conformal_limit(of_label, ["a", "b", "c", "d"], 0.6)
    copied = conformal_limit(np.r_[of_label, [0.1] * 50], ["a", "b", "c", "d", *["d"] * 50], 0.6)
    assert once == copied == 0.7  # a patient with 51 poor images counts as one
    without_groups = conformal_limit(np.r_[of_label, [0.1] * 50], list(range(54)), 0.6)
    assert without_groups == 0.1


def test_with_few_groups_sets_hold_all_classes_and_the_reason_is_named() -> None:
    assert required_groups(0.9) == 9
    labels = np.arange(9) % 3
    logits = (8 * np.eye(3)[labels] + np.random.default_rng(0).normal(size=(9, 3))).astype(np.float32)
    answer = calibrate(Answer(), logits, labels)
    assert answer.sets is not None
    assert answer.sets.limit > 0
    assert answer.sets.problem is None
    few = calibrate(Answer(), logits[:8], labels[:8])
    assert few.sets is not None
    assert few.sets.limit == 0
    assert few.sets.problem == "val has 8 groups, and 9 are needed for a coverage of 0.9"
    assert held(few, np.array([1.0, 0.0, 0.0])) == [0, 1, 2]
    one_patient = calibrate(Answer(), logits, labels, groups=["p"] * 9)
    assert one_patient.sets is not None
    assert one_patient.sets.groups == 1
    assert one_patient.sets.limit == 0
    unknown = calibrate(Answer(), logits, np.where(labels == 2, 3, labels))  # a third of val cannot be covered
    assert unknown.sets is not None
    assert unknown.sets.problem == "on val no limit reaches a coverage of 0.9"
    targets = np.eye(3)[labels]
    assert calibrate(Answer(multilabel=True), logits, targets).sets is None


def test_a_set_is_never_empty_and_holds_the_classes_at_the_limit() -> None:
    answer = Answer(sets=SetLimit(coverage=0.8, limit=0.3, groups=50))
    assert held(answer, np.array([0.5, 0.3, 0.2], np.float32)) == [0, 1]
    sure = Answer(sets=SetLimit(coverage=0.5, limit=0.9, groups=50))
    assert held(sure, np.array([0.5, 0.3, 0.2])) == [0]
    assert Answer().prediction_sets(np.array([[0.5, 0.5]])) is None


def test_coverage_and_size_are_means_over_groups() -> None:
    labels = np.array([0, 0, 0, 1, 2])
    sets = np.array([[1, 0], [1, 0], [0, 1], [1, 1], [1, 1]], bool)
    metrics = set_metrics(labels, sets, ["p", "p", "q", "r", "s"], ["a", "b", "new"], resamples=50)
    assert metrics["coverage"] == pytest.approx((1 + 0 + 1 + 0) / 4)  # the class that is not known is never covered
    assert metrics["mean_size"] == pytest.approx((1 + 1 + 2 + 2) / 4)
    assert metrics["coverage_low"] <= metrics["coverage"] <= metrics["coverage_high"]
    assert metrics["per_class"]["a"] == metrics["per_class"]["a"] | {"groups": 2, "coverage": 0.5}
    assert metrics["per_class"]["new"]["coverage"] == 0
    assert metrics["sizes"] == {"1": 3, "2": 2}
