"""Retrieval: how many of the results, best first, are relevant.

Policy: a query without any relevant image in the collection has no average precision and no recall (nan), and is left
out of their means and counted; its precision is 0, since nothing that was shown is relevant. Where a collection gives
fewer than k results, precision@k still divides by k: an empty place is no hit.
"""

import numpy as np


def average_precision(relevant: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Mean precision at the places of the relevant results, over all that are relevant in the collection.

    Args:
        relevant: bool (Q, R): whether the result at each place is relevant, best first; False where there is none.
        total: int (Q,): relevant images in the collection. With R below it, those beyond R count as never found.

    Returns:
        float64 (Q,), 0 to 1, or nan.

    >>> average_precision(np.array([[True, False, True]]), np.array([2])).round(3)
    array([0.833])
    """
    relevant, total = np.asarray(relevant, bool), np.asarray(total)
    assert (relevant.sum(axis=1) <= total).all(), "more relevant results than relevant images"
    places = np.arange(1, relevant.shape[1] + 1)
    precision = relevant.cumsum(axis=1) / places
    return _divide((precision * relevant).sum(axis=1), total)


def recall_at(relevant: np.ndarray, total: np.ndarray, k: int) -> np.ndarray:
    """The share of all relevant images among the first k; float64 (Q,), nan for a query without any."""
    return _divide(np.asarray(relevant, bool)[:, :k].sum(axis=1).astype(float), np.asarray(total))


def precision_at(relevant: np.ndarray, k: int) -> np.ndarray:
    """The share of relevant ones among the first k; float64 (Q,)."""
    return np.asarray(relevant, bool)[:, :k].sum(axis=1) / k


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)
