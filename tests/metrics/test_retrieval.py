"""Retrieval metrics against scikit-learn's average precision and by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from dinomed.metrics.retrieval import average_precision, precision_at, recall_at


def test_the_average_precision_of_a_full_ranking_equals_scikit_learn() -> None:
    relevant = np.random.default_rng(0).random((20, 50)) < 0.2
    scores = -np.arange(50.0)
    expected = [average_precision_score(row, scores) for row in relevant]
    assert average_precision(relevant, relevant.sum(1)) == pytest.approx(expected, abs=1e-12)


def test_metrics_equal_those_computed_by_hand() -> None:
    relevant = np.array([[True, False, True, False], [False, False, False, False], [False, False, False, False]])
    total = np.array([3, 2, 0])  # one of the three relevant images of the first query is beyond the list
    assert average_precision(relevant, total)[:2] == pytest.approx([(1 + 2 / 3) / 3, 0])
    assert recall_at(relevant, total, 3)[:2] == pytest.approx([2 / 3, 0])
    assert np.isnan(recall_at(relevant, total, 3)[2])
    assert precision_at(relevant, 3) == pytest.approx([2 / 3, 0, 0])
    assert precision_at(relevant, 8)[0] == 2 / 8  # an empty place counts as not relevant


def test_a_query_without_relevant_images_is_undefined() -> None:
    relevant, total = np.zeros((2, 3), bool), np.zeros(2, int)
    assert np.isnan([average_precision(relevant, total), recall_at(relevant, total, 1)]).all()
    assert (precision_at(relevant, 5) == 0).all()
