"""Inverted files over unit vectors (IVF, Jégou et al. 2011, by faiss).

k-means divides the vectors into lists, one for each centroid. A query is compared with the vectors of the lists whose
centroids are nearest to it. The number of these lists is called probes: more probes find more of the true neighbours
and take longer.
"""

from typing import Any

import faiss
import numpy as np


def choose_num_lists(count: int, vectors_per_list: int) -> int:
    """Return 4 sqrt(`count`), as faiss advises, or fewer lists where that leaves fewer than `vectors_per_list` each."""
    return max(1, min(int(4 * count**0.5), count // vectors_per_list))


def train_centroids(vectors: np.ndarray, lists: int, *, iterations: int, seed: int) -> np.ndarray:
    """Compute the centroids of the lists by spherical k-means.

    Args:
        vectors: float32 (N, D), rows of length 1. Of more than 256 vectors for each list a random sample is used.
        lists: number of centroids, at most N.

    Returns:
        float32 (lists, D), rows of length 1.
    """
    # faiss would print a warning for fewer than 39 vectors for each centroid
    kmeans: Any = faiss.Kmeans(
        vectors.shape[1], lists, niter=iterations, spherical=True, seed=seed, min_points_per_centroid=1
    )
    kmeans.train(vectors)
    return np.array(kmeans.centroids, np.float32)


def empty_inverted_file(
    centroids: np.ndarray, codec: str = "Flat", *, sample: np.ndarray | None = None, seed: int = 0
) -> Any:
    """Build a faiss index with a list for each centroid, to which vectors can be added.

    Args:
        centroids: float32 (lists, D), rows of length 1.
        codec: how vectors are stored, in the words of `faiss.index_factory`: `Flat`, `SQ8`, or `PQ` with the number of
            subspaces.
        sample: float32 (n, D), the vectors that the codec is trained on. `Flat` needs none.
        seed: of the k-means of `PQ`.
    """
    lists, dimension = centroids.shape
    index: Any = faiss.index_factory(dimension, f"IVF{lists},{codec}", faiss.METRIC_INNER_PRODUCT)
    index.quantizer.add(centroids)
    if codec.startswith("PQ"):
        index.pq.cp.seed = seed
        index.pq.cp.min_points_per_centroid = 1
    index.train(centroids if sample is None else sample)  # trains the codec only: the lists have their centroids
    return index
