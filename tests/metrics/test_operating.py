"""Thresholds against an exhaustive search, and operating points against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from dinomed.metrics.operating import operating_point, youden_threshold

ROWS = st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=25)


def rates(positive: np.ndarray, scores: np.ndarray) -> list[tuple[float, float]]:
    """Return (sensitivity, specificity) with each score as the threshold."""
    points = [operating_point(positive, scores, score) for score in scores]
    return [(point["sensitivity"], point["specificity"]) for point in points]


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_no_threshold_has_a_larger_youden_index(rows: list[tuple[bool, float]]) -> None:
    positive, scores = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    threshold = youden_threshold(positive, scores)
    if not 0 < positive.sum() < len(positive):
        assert threshold is None
        return
    assert threshold is not None
    chosen = operating_point(positive, scores, threshold)
    best = max(sum(point) for point in rates(positive, scores))
    assert chosen["sensitivity"] + chosen["specificity"] == pytest.approx(best, abs=1e-9)


def test_an_operating_point_equals_the_confusion_matrix() -> None:
    rng = np.random.default_rng(0)
    positive, scores = rng.random(100) < 0.3, rng.random(100)
    point = operating_point(positive, scores, 0.4)
    tn, fp, fn, tp = confusion_matrix(positive, scores >= 0.4).ravel()
    assert (point["true_negatives"], point["false_positives"]) == (tn, fp)
    assert (point["false_negatives"], point["true_positives"]) == (fn, tp)
    assert point["sensitivity"] == pytest.approx(tp / (tp + fn))
    assert point["precision"] == pytest.approx(tp / (tp + fp))


def test_undefined_rates_are_nan() -> None:
    point = operating_point(np.array([True, True]), np.array([0.1, 0.2]), 0.5)
    assert point["sensitivity"] == 0.0
    assert np.isnan([point["specificity"], point["precision"]]).all()
