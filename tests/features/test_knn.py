"""k-NN classification against scikit-learn with the same weights."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from dinomed.features.knn import TEMPERATURE, knn_probabilities


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_probabilities_equal_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    train, queries, labels = rng.normal(size=(80, 6)), rng.normal(size=(15, 6)), rng.integers(0, 4, 80)
    by_k = knn_probabilities(train, labels, queries, 4, ks=(5, 20))
    assert list(by_k) == [5, 20]
    for k, probabilities in by_k.items():
        oracle = KNeighborsClassifier(
            k,
            algorithm="brute",
            # of unit vectors: |a - b|^2 = 2 - 2 a.b
            weights=lambda distance: np.exp((1 - distance**2 / 2) / TEMPERATURE),
        ).fit(unit(train), labels)
        # similarities are float32 (6e-8 near 1) and are divided by 0.07
        assert probabilities == pytest.approx(oracle.predict_proba(unit(queries)), abs=1e-5)


def test_k_is_at_most_the_size_of_the_training_set() -> None:
    by_k = knn_probabilities(np.eye(3), np.array([0, 1, 1]), np.eye(3), 2)
    assert list(by_k) == [3]
    assert by_k[3].sum(1) == pytest.approx([1, 1, 1])
    assert by_k[3].argmax(1).tolist() == [0, 1, 1]


def test_votes_are_weighted_by_similarity() -> None:
    train, labels = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), np.array([0, 1, 1])
    share = knn_probabilities(train, labels, np.array([[1.0, 0.0]]), 2, ks=(3,))[3][0]
    expected = 1 / (1 + 2 * np.exp(-1 / TEMPERATURE))
    assert share[0] == pytest.approx(expected, rel=1e-6)
