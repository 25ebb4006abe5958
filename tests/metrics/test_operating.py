"""Thresholds by exhaustive search, and what happens at them against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from dinomed.metrics.operating import operating_point, threshold_at_sensitivity, youden_threshold

ROWS = st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=25)


def points(positive: np.ndarray, scores: np.ndarray) -> list[tuple[float, float]]:
    """(sensitivity, specificity) at every threshold that makes a difference."""
    found = [operating_point(positive, scores, t) for t in scores]
    return [(one["sensitivity"], one["specificity"]) for one in found]


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_no_threshold_is_better_than_the_chosen(rows: list[tuple[bool, float]]) -> None:
    positive, scores = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    youden, fixed = youden_threshold(positive, scores), threshold_at_sensitivity(positive, scores, 0.9)
    if not 0 < positive.sum() < len(positive):
        assert youden is None
        assert fixed is None
        return
    assert youden is not None
    assert fixed is not None
    one, other = operating_point(positive, scores, youden), operating_point(positive, scores, fixed)
    best = max(sum(point) for point in points(positive, scores))
    assert one["sensitivity"] + one["specificity"] == pytest.approx(best, abs=1e-9)
    assert other["sensitivity"] >= 0.9
    assert other["specificity"] == max(spec for sens, spec in points(positive, scores) if sens >= 0.9)


def test_a_point_is_the_confusion_matrix() -> None:
    rng = np.random.default_rng(0)
    positive, scores = rng.random(100) < 0.3, rng.random(100)
    found = operating_point(positive, scores, 0.4)
    tn, fp, fn, tp = confusion_matrix(positive, scores >= 0.4).ravel()
    assert (found["true_negatives"], found["false_positives"]) == (tn, fp)
    assert (found["false_negatives"], found["true_positives"]) == (fn, tp)
    assert found["sensitivity"] == pytest.approx(tp / (tp + fn))
    assert found["precision"] == pytest.approx(tp / (tp + fp))


def test_what_cannot_be_divided_is_nan() -> None:
    found = operating_point(np.array([True, True]), np.array([0.1, 0.2]), 0.5)
    assert found["sensitivity"] == 0.0
    assert np.isnan([found["specificity"], found["precision"]]).all()
