"""Retrieval of pool images that are similar to a query set (DINOv2, section 3 and appendix A).

A large query set retrieves the nearest images of each query. A small one retrieves images of the clusters that contain
its queries.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dinomed.errors import UsageError
from dinomed.pretrain.curation.search.exact import MEMORY_GIB, top_k
from dinomed.pretrain.curation.search.ivf import ApproximateIndex
from dinomed.pretrain.curation.search.pairs import SimilarPairs, best_pairs
from dinomed.pretrain.curation.search.vectors import (
    check_count,
    check_same_dimension,
    check_threshold,
    check_vectors,
    similarity_of,
)
from dinomed.pretrain.curation.selection.config import SAMPLE_FROM
from dinomed.pretrain.curation.selection.kmeans import Clusters, assign, even_shares

Mode = Literal["sample", "cluster"]


@dataclass(frozen=True)
class RetrievedImages:
    """The images that a query set retrieves; arrays of (R,), ascending by row, each row once.

    Attributes:
        row: int64, row of the pool.
        query: int64, the most similar query of those that retrieved the row; -1 in cluster mode.
        cluster: int64, cluster of the row; -1 in sample mode.
        similarity: float32, cosine to that query, or to the centroid of that cluster.
        before_limit: number of images before the limit was applied.
    """

    mode: Mode
    row: np.ndarray
    query: np.ndarray
    cluster: np.ndarray
    similarity: np.ndarray
    before_limit: int

    def __len__(self) -> int:
        return len(self.row)


def choose_mode(queries: int, sample_from: int = SAMPLE_FROM) -> Mode:
    """Choose the mode by the number of queries. The paper uses `sample` for more than a million images."""
    return "sample" if queries > sample_from else "cluster"


def retrieve_samples(
    queries: np.ndarray,
    pool: np.ndarray,
    *,
    k: int = 4,
    threshold: float | None = None,
    limit: int | None = None,
    index: ApproximateIndex | None = None,
    memory_gib: float = MEMORY_GIB,
) -> RetrievedImages:
    """Retrieve the `k` nearest images of each query, each image once.

    Args:
        queries: float32 (Q, D); pool: float32 (N, D); rows of length 1.
        k: 4 in the paper (32 for ImageNet-1k).
        threshold: retrieve only images with a higher cosine. The paper has no threshold.
        limit: largest number of images. All first neighbours precede any second neighbour, and of equal neighbours the
            more similar one precedes.
        index: an approximate index of the pool, for more than about a million images; None: exact search.

    Raises:
        UsageError: k above the size of the pool, a threshold outside [-1, 1], or a limit below 1.
        DinomedError: vectors that are not finite or not of length 1, or different dimensions.
    """
    if threshold is not None:
        check_threshold(threshold)
    _check_limit(limit)
    if index is None:
        similarity, neighbors = top_k(queries, pool, k, memory_gib=memory_gib, description="retrieval")
    else:
        similarity, neighbors = index.top_k(queries, k)
    is_retrieved = neighbors >= 0
    if threshold is not None:
        is_retrieved &= similarity > np.float32(threshold)
    query, rank = np.nonzero(is_retrieved)
    row, similarity = neighbors[is_retrieved], similarity[is_retrieved]
    lowest_rank = np.full(len(pool), k)
    np.minimum.at(lowest_rank, row, rank)
    # the most similar query of each image, as a pair from the image (i) to the query (j)
    best = best_pairs(SimilarPairs(row, query, similarity), 1, symmetric=False)
    order = np.lexsort((best.i, -best.similarity, lowest_rank[best.i]))
    kept = best.take(order[:limit]).sorted()
    return RetrievedImages("sample", kept.i, kept.j, np.full(len(kept), -1), kept.similarity, len(best))


def retrieve_clusters(
    queries: np.ndarray,
    pool: np.ndarray,
    clusters: Clusters,
    *,
    min_queries: int = 3,
    per_cluster: int = 10_000,
    limit: int | None = 1_000_000,
    seed: int = 0,
) -> RetrievedImages:
    """Retrieve random images of each cluster of the pool that contains more than `min_queries` queries.

    Args:
        queries: float32 (Q, D); pool: float32 (N, D); rows of length 1.
        clusters: spherical clusters of the pool (the paper has 100,000 clusters of 744M images).
        per_cluster: largest number of images of a cluster.
        limit: largest number of images in all; the clusters share it as evenly as their sizes allow.

    Raises:
        UsageError: clusters of another pool, or a number below its minimum.
        DinomedError: vectors that are not finite or not of length 1, or different dimensions.
    """
    check_vectors(queries, "queries")
    check_same_dimension(queries, pool)
    _check_limit(limit)
    check_count(per_cluster, 2**62, "per_cluster", "images that a cluster may give")
    if len(clusters.assignment) != len(pool):
        raise UsageError(
            f"the clusters are of {len(clusters.assignment):,} images, and the pool has {len(pool):,}; cluster it again"
        )
    cluster_of_query, _ = assign(queries, clusters.centroids)
    is_retrieved = np.bincount(cluster_of_query, minlength=len(clusters.centroids)) > min_queries
    available = np.where(is_retrieved, np.minimum(clusters.sizes, per_cluster), 0)
    rng = np.random.default_rng(seed)
    shares = available if limit is None else even_shares(available, limit, rng)
    # a random order within each cluster, of which the first images are kept
    order = np.lexsort((rng.random(len(pool)), clusters.assignment))
    row = clusters.first_of_each(order, shares)
    cluster = clusters.assignment[row]
    similarity = similarity_of(pool, clusters.centroids, row, cluster)
    return RetrievedImages("cluster", row, np.full(len(row), -1), cluster, similarity, int(available.sum()))


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise UsageError(f"the limit is {limit} images; give at least 1, or null for no limit")
