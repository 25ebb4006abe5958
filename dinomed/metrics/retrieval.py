"""Retrieval metrics: average precision, recall and precision of ranked results.

Policy: the average precision and the recall of a query without a relevant image in the collection are nan; its
precision is 0, since no result is relevant. With fewer than k results, precision@k still divides by k: an empty place
counts as not relevant.
"""

import numpy as np

from dinomed.metrics.ratios import divide


def average_precision(relevant: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Compute the average precision of each query: the sum of the precision at the place of each relevant result,
    divided by the number of relevant images in the collection.

    Args:
        relevant: bool (Q, R): whether the result at each place, best first, is relevant; False where there is no
            result.
        total: int (Q,): relevant images in the collection. Those that are not among the R results count as not found.

    Returns:
        float64 (Q,), 0 to 1, or nan.

    >>> average_precision(np.array([[True, False, True]]), np.array([2])).round(3)
    array([0.833])
    """
    relevant, total = np.asarray(relevant, bool), np.asarray(total)
    assert (relevant.sum(axis=1) <= total).all(), "more relevant results than relevant images"
    places = np.arange(1, relevant.shape[1] + 1)
    precision = relevant.cumsum(axis=1) / places
    return divide((precision * relevant).sum(axis=1), total)


def recall_at(relevant: np.ndarray, total: np.ndarray, k: int) -> np.ndarray:
    """Compute the share of all relevant images that are among the first k; float64 (Q,), nan without a relevant
    image."""
    return divide(np.asarray(relevant, bool)[:, :k].sum(axis=1).astype(float), np.asarray(total))


def precision_at(relevant: np.ndarray, k: int) -> np.ndarray:
    """Compute the share of the first k results that are relevant; float64 (Q,)."""
    return np.asarray(relevant, bool)[:, :k].sum(axis=1) / k
