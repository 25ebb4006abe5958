"""k-nearest-neighbour (k-NN) classification of features, as in DINO (Caron et al. 2021, section 4.1, and its code).

The k features with the largest cosine similarity vote for their class with weight exp(similarity / 0.07).
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from torch import Tensor

from dinomed.features.neighbors import nearest

TEMPERATURE = 0.07
KS = (10, 20, 100, 200)


Similarities = TypeVar("Similarities", np.ndarray, Tensor)


def vote_exponent(similarities: Similarities, temperature: float = TEMPERATURE) -> Similarities:
    """Return the logarithm of the weight of each neighbour's vote.

    The constant -1 keeps the weights at most 1, so that none overflows; it cancels when the shares are normalised.
    """
    return (similarities - 1) / temperature


def knn_probabilities(
    train: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    num_classes: int,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
) -> dict[int, np.ndarray]:
    """Compute the share of the votes of each class, float64 (Q, num_classes), for each k.

    Args:
        train: training features (N, C), not necessarily normalised.
        labels: their classes, int (N,).
        queries: features (Q, C).
        ks: numbers of neighbours; a k above N becomes N.

    Raises:
        DinomedError: a feature is not finite.
    """
    ks = sorted({min(k, len(train)) for k in ks})
    similarities, indices = nearest(queries, train, ks[-1])
    weights = np.exp(vote_exponent(similarities.astype(np.float64), temperature))
    votes = np.zeros((len(queries), num_classes))
    shares = {}
    for rank in range(ks[-1]):
        votes[np.arange(len(queries)), labels[indices[:, rank]]] += weights[:, rank]
        if rank + 1 in ks:
            shares[rank + 1] = votes / votes.sum(axis=1, keepdims=True)
    return shares
