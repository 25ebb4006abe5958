"""AUROC, average precision and curves against scikit-learn, with ties, weights and missing classes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from dinomed.metrics.ranking import Ranking


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3)), min_size=2, max_size=30),
)
def test_values_equal_scikit_learn_for_any_scores_and_counts(rows: list[tuple[bool, int, int]]) -> None:
    positive, scores, counts = (np.array(column) for column in zip(*rows, strict=True))
    ranking = Ranking(positive.astype(bool), scores.astype(float))
    drawn = np.repeat(np.arange(len(rows)), counts)
    targets = positive[drawn].astype(bool)
    auroc, precision = ranking.auroc(counts[None])[0], ranking.average_precision(counts[None])[0]
    if 0 < targets.sum() < len(targets):
        assert auroc == pytest.approx(roc_auc_score(targets, scores[drawn]), abs=1e-12)
    else:
        assert np.isnan(auroc)
    if targets.any():
        assert precision == pytest.approx(average_precision_score(targets, scores[drawn]), abs=1e-12)
    else:
        assert np.isnan(precision)


def test_curves_equal_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(200) < 0.3
    scores = (rng.normal(size=200) + positive).round(1)
    ranking = Ranking(positive, scores)
    false, true, _ = roc_curve(positive, scores, drop_intermediate=False)
    np.testing.assert_allclose(ranking.roc(), (false, true), atol=1e-12)
    precision, recall, _ = precision_recall_curve(positive, scores)
    ours = ranking.precision_recall()
    np.testing.assert_allclose(ours, (recall[-2::-1], precision[-2::-1]), atol=1e-12)


def test_values_without_images_are_nan() -> None:
    ranking = Ranking(np.zeros(0, bool), np.zeros(0))
    assert np.isnan(ranking.auroc()).all()
    assert np.isnan(ranking.average_precision()).all()
