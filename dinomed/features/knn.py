"""k-nearest-neighbour classification, as in the DINO paper (Caron et al. 2021, section 4.1 and its reference code).

Cosine similarity between class tokens; the k nearest vote for their class with weight exp(similarity / 0.07).
"""

from collections.abc import Sequence

import numpy as np

from dinomed.features.neighbors import nearest

TEMPERATURE = 0.07
KS = (10, 20, 100, 200)


def knn_probabilities(
    train: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    num_classes: int,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
) -> dict[int, np.ndarray]:
    """Shares of the vote, float64 (Q, num_classes), for each k; a k beyond the N training features becomes N.

    Args:
        train: (N, C), `labels` int (N,); queries: (Q, C). They need not be normalised.

    Raises:
        DinomedError: features that are not finite.
    """
    ks = sorted({min(k, len(train)) for k in ks})
    similarities, indices = nearest(queries, train, ks[-1])
    weights = np.exp((similarities.astype(np.float64) - 1) / temperature)  # the factor exp(-1/T) cancels; no overflow
    votes = np.zeros((len(queries), num_classes))
    shares = {}
    for rank in range(ks[-1]):
        votes[np.arange(len(queries)), labels[indices[:, rank]]] += weights[:, rank]
        if rank + 1 in ks:
            shares[rank + 1] = votes / votes.sum(axis=1, keepdims=True)
    return shares
