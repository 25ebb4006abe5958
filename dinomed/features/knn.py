"""k-nearest-neighbour (k-NN) classification of features, as in DINO (Caron et al. 2021, section 4.1, and its code).

The k features with the largest cosine similarity vote for their class with weight exp(similarity / 0.07).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dinomed.features.neighbors import nearest

TEMPERATURE = 0.07
KS = (10, 20, 100, 200)
_BLOCK_VALUES = 2**24  # votes that are in memory at the same time, 128 MB


def sum_votes(similarities: Tensor, votes: Tensor) -> Tensor:
    """Return the weighted sum of the votes of neighbours, float64 (Q, K).

    The weight is exp((similarity - 1) / `TEMPERATURE`). The constant -1 keeps it at most 1, so that it does not
    overflow; it cancels when the sums are normalised.

    Args:
        similarities: cosine similarity of the neighbours of each query, (Q, k).
        votes: votes of each neighbour, (Q, k, K).
    """
    weights = ((similarities.double() - 1) / TEMPERATURE).exp()
    return (weights.unsqueeze(-1) * votes).sum(1)


def knn_probabilities(
    train: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    num_classes: int,
    ks: Sequence[int] = KS,
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
    neighbours, rows = torch.from_numpy(similarities), torch.from_numpy(indices)
    votes = torch.eye(num_classes, dtype=torch.float64)[torch.from_numpy(np.asarray(labels, np.int64))]
    shares = {}
    for k in ks:
        step = max(1, _BLOCK_VALUES // (k * num_classes))
        blocks = [
            sum_votes(neighbours[start : start + step, :k], votes[rows[start : start + step, :k]])
            for start in range(0, len(queries), step)
        ]
        sums = torch.cat(blocks).numpy() if blocks else np.zeros((0, num_classes))
        shares[k] = sums / sums.sum(axis=1, keepdims=True)
    return shares
