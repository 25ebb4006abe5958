"""Images of a pile that are like those of a query set (DINOv2, section 3 and appendix A).

Large query sets get the nearest images of each query, small ones whole clusters in which queries lie.
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
from dinomed.pretrain.curation.selection.kmeans import Clusters, assign, shares

Mode = Literal["sample", "cluster"]
SAMPLE_FROM = 1_000_000
"""Query sets of more images than this are retrieved image by image."""


@dataclass(frozen=True)
class Retrieved:
    """What one query set brings in; arrays of (R,), ascending by row, each row once."""

    mode: Mode
    row: np.ndarray  # int64: of the pile
    query: np.ndarray  # int64: the query it is most like of those that asked for it; -1 by cluster
    cluster: np.ndarray  # int64: by cluster; -1 by sample
    similarity: np.ndarray  # float32: to that query, or to the centroid of that cluster
    before_limit: int  # images that were found before the limit was applied

    def __len__(self) -> int:
        return len(self.row)


def choose_mode(queries: int, sample_from: int = SAMPLE_FROM) -> Mode:
    """By the size of a query set, as the paper does it: one of more than a million images is sampled from."""
    return "sample" if queries > sample_from else "cluster"


def retrieve_samples(
    queries: np.ndarray,
    pile: np.ndarray,
    *,
    k: int = 4,
    threshold: float | None = None,
    limit: int | None = None,
    searcher: ApproximateIndex | None = None,
    memory_gib: float = MEMORY_GIB,
) -> Retrieved:
    """The `k` nearest images of each query, each image once.

    Args:
        queries: float32 (Q, D); pile: float32 (N, D); rows of length 1.
        k: 4 in the paper (32 for ImageNet-1k).
        threshold: only what is more similar than this. The paper has none.
        limit: at most so many images: all first neighbours before any second one, the most similar first.
        searcher: an approximate index of the pile, for more than about a million; else the search is exact.

    Raises:
        UsageError: k larger than the pile, a threshold outside [-1, 1], a limit below 1.
        DinomedError: vectors that are not finite or not of length 1, or of other dimensions.
    """
    if threshold is not None:
        check_threshold(threshold)
    _check_limit(limit)
    if searcher is None:
        similarity, found = top_k(queries, pile, k, memory_gib=memory_gib, description="retrieval")
    else:
        similarity, found = searcher.top_k(queries, k)
    asked = found >= 0
    if threshold is not None:
        asked &= similarity > np.float32(threshold)
    query, rank = np.nonzero(asked)
    row, similarity = found[asked], similarity[asked]
    first_asked = np.full(len(pile), k)
    np.minimum.at(first_asked, row, rank)
    # the best query of each image: `SimilarPairs` from the image to the query
    best = best_pairs(SimilarPairs(row, query, similarity), 1, symmetric=False)
    order = np.lexsort((best.i, -best.similarity, first_asked[best.i]))
    taken = best.take(order[:limit]).sorted()
    return Retrieved("sample", taken.i, taken.j, np.full(len(taken), -1), taken.similarity, len(best))


def retrieve_clusters(
    queries: np.ndarray,
    pile: np.ndarray,
    clusters: Clusters,
    *,
    min_queries: int = 3,
    per_cluster: int = 10_000,
    limit: int | None = 1_000_000,
    seed: int = 0,
) -> Retrieved:
    """Images from every cluster of the pile in which more than `min_queries` queries lie, drawn at random.

    Args:
        queries: float32 (Q, D); pile: float32 (N, D); rows of length 1.
        clusters: of the pile, spherical (the paper has 100,000 of them, of 744M images).
        per_cluster: at most so many of a cluster.
        limit: at most so many in all; then the clusters share it as evenly as they can.

    Raises:
        UsageError: clusters of another pile, a number below its least.
        DinomedError: vectors that are not finite or not of length 1, or of other dimensions.
    """
    check_vectors(queries, "queries")
    check_same_dimension(queries, pile)
    _check_limit(limit)
    check_count(per_cluster, 2**62, "per_cluster", "images that a cluster may give")
    if len(clusters.assignment) != len(pile):
        raise UsageError(
            f"clusters of {len(clusters.assignment):,} images for a pile of {len(pile):,}: make them again"
        )
    home, _ = assign(queries, clusters.centroids)
    asked = np.bincount(home, minlength=len(clusters.centroids)) > min_queries
    available = np.where(asked, np.minimum(clusters.sizes, per_cluster), 0)
    rng = np.random.default_rng(seed)
    wanted = available if limit is None else shares(available, limit, rng)
    # a random order within each cluster, of which the first ones are taken
    order = np.lexsort((rng.random(len(pile)), clusters.assignment))
    starts = np.concatenate([[0], np.cumsum(clusters.sizes)[:-1]])
    place = np.arange(len(order)) - starts[clusters.assignment[order]]
    row = np.sort(order[place < wanted[clusters.assignment[order]]])
    cluster = clusters.assignment[row]
    similarity = similarity_of(pile, clusters.centroids, row, cluster)
    return Retrieved("cluster", row, np.full(len(row), -1), cluster, similarity, int(available.sum()))


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} images; give at least 1, or none")
