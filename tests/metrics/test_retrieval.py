"""Retrieval metrics against scikit-learn's average precision and by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from dinomed.metrics.retrieval import average_precision, precision_at, recall_at, retrieval_metrics


def test_the_average_precision_of_a_whole_ranking_is_that_of_scikit_learn() -> None:
    relevant = np.random.default_rng(0).random((20, 50)) < 0.2
    scores = -np.arange(50.0)
    expected = [average_precision_score(row, scores) for row in relevant]
    assert average_precision(relevant, relevant.sum(1)) == pytest.approx(expected, abs=1e-12)


def test_by_hand() -> None:
    relevant = np.array([[True, False, True, False], [False, False, False, False], [False, False, False, False]])
    total = np.array([3, 2, 0])  # one of the first query's three is beyond the list
    found = retrieval_metrics(relevant, total, ks=(1, 3))
    assert found["map"] == pytest.approx(((1 + 2 / 3) / 3 + 0) / 2)
    assert (found["n"], found["without_relevant"]) == (3, 1)
    assert recall_at(relevant, total, 3)[:2] == pytest.approx([2 / 3, 0])
    assert np.isnan(recall_at(relevant, total, 3)[2])
    assert precision_at(relevant, 3) == pytest.approx([2 / 3, 0, 0])
    assert precision_at(relevant, 8)[0] == 2 / 8  # an empty place is no hit
    assert found["hit@1"] == 0.5
    assert found["precision@1"] == pytest.approx(1 / 3)


def test_nothing_to_find_is_undefined() -> None:
    found = retrieval_metrics(np.zeros((2, 3), bool), np.zeros(2, int))
    assert np.isnan([found["map"], found["recall@1"], found["hit@5"]]).all()
    assert found["precision@5"] == 0.0
