"""k-means (faiss) with bounded memory, a seed, a k-means++ start and errors that state the reason.

`even_shares` divides a number evenly among clusters, for both ways of sampling from clusters.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import faiss
import numpy as np
from sklearn.cluster import kmeans_plusplus

from dinomed.errors import DinomedError
from dinomed.pretrain.curation.search.vectors import GIB, blocks, check_count
from dinomed.progress import track

T = TypeVar("T")
POINTS_PER_CENTROID = 256  # more points do not improve a centroid (the default of faiss)
_MAX_PLUSPLUS_PRODUCTS = 200_000_000  # points x clusters up to which the start is chosen by k-means++


@dataclass(frozen=True)
class Clusters:
    """The result of a k-means.

    Attributes:
        centroids: float32 (K, D); of length 1 if spherical.
        assignment: int64 (N,), the cluster of each point.
        closeness: float32 (N,), the cosine to the centroid if spherical, else minus the squared distance.
    """

    centroids: np.ndarray
    assignment: np.ndarray
    closeness: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Number of points in each cluster, int64 (K,). A cluster may be empty."""
        return np.bincount(self.assignment, minlength=len(self.centroids))

    @property
    def starts(self) -> np.ndarray:
        """Position of the first point of each cluster, int64 (K,), if points are sorted by cluster."""
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]])

    def first_of_each(self, order: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return the first `counts` points of each cluster in an order of all points.

        Args:
            order: int64 (N,), all points, sorted by cluster.
            counts: int64 (K,).

        Returns:
            Rows int64, ascending.
        """
        rank = np.arange(len(order)) - self.starts[self.assignment[order]]
        return np.sort(order[rank < counts[self.assignment[order]]])


def kmeans(
    x: np.ndarray,
    k: int,
    *,
    spherical: bool = True,
    iterations: int = 20,
    seed: int = 0,
    memory_gib: float = 2.0,
    description: str | None = "k-means",
) -> Clusters:
    """Divide float32 (N, D) into `k` clusters.

    Args:
        spherical: cluster by cosine, with centroids of length 1; otherwise by Euclidean distance.
        memory_gib: limits the number of points that the centroids are fitted to; they are drawn by `seed`. All points
            are assigned.
        description: label of the progress bar; None: no progress bar.

    Raises:
        UsageError: more clusters than points.
        DinomedError: values that are not finite.
    """
    check_count(k, len(x), "the number of clusters", "vectors")
    _check_finite(x)
    sample = _sample(x, k, memory_gib, seed)
    centroids = sample.copy() if k == len(sample) else _fit(sample, k, spherical, iterations, seed, description)
    return Clusters(centroids, *assign(x, centroids, spherical=spherical, description=description))


def assign(
    x: np.ndarray, centroids: np.ndarray, *, spherical: bool = True, description: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Assign each row to its nearest centroid. The rows may be any part of the points.

    Args:
        description: label of the progress bar; None: no progress bar.

    Returns:
        `assignment` and `closeness` as in `Clusters`.
    """
    metric = faiss.METRIC_INNER_PRODUCT if spherical else faiss.METRIC_L2
    assignment, closeness = np.empty(len(x), np.int64), np.empty(len(x), np.float32)
    for rows in _with_progress(list(blocks(len(x), x.shape[1] * 4)), description and f"{description}: assigning"):
        values, index = faiss.knn(np.ascontiguousarray(x[rows]), centroids, 1, metric=metric)
        assignment[rows], closeness[rows] = index[:, 0], values[:, 0] if spherical else -values[:, 0]
    return assignment, closeness


def even_shares(sizes: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """Divide `total` among clusters as evenly as their sizes allow.

    The share of a cluster is min(size, c), with the largest c whose sum is at most `total`. The remainder goes to
    larger clusters drawn at random, one each. If all sizes together are at most `total`, each share is the size.

    Args:
        sizes: int (K,).

    Returns:
        int64 (K,).

    >>> even_shares(np.array([100, 5, 1]), 9, np.random.default_rng(0)).tolist()
    [4, 4, 1]
    """
    sizes = np.asarray(sizes, np.int64)
    if sizes.sum() <= total:
        return sizes.copy()
    low, high = 0, int(sizes.max())  # binary search for c
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= total else (low, middle - 1)
    out = np.minimum(sizes, low)
    one_more = rng.choice(np.flatnonzero(sizes > low), total - int(out.sum()), replace=False)
    out[one_more] += 1
    return out


def _check_finite(x: np.ndarray) -> None:
    for rows in blocks(len(x), x.shape[1] * 4):
        bad = ~np.isfinite(x[rows]).all(axis=1)
        if bad.any():
            row = rows.start + int(bad.argmax())
            raise DinomedError(f"k-means: row {row} has nan or infinite values; compute it again")


def _sample(x: np.ndarray, k: int, memory_gib: float, seed: int) -> np.ndarray:
    """Draw the points that the centroids are fitted to, at least one for each centroid."""
    max_points = int(memory_gib * GIB / 2 / (x.shape[1] * 4))
    count = min(len(x), k * POINTS_PER_CENTROID, max(max_points, k))
    if count == len(x):
        return np.ascontiguousarray(x)
    return x[np.sort(np.random.default_rng(seed).choice(len(x), count, replace=False))]


def _fit(x: np.ndarray, k: int, spherical: bool, iterations: int, seed: int, description: str | None) -> np.ndarray:
    if len(x) * k <= _MAX_PLUSPLUS_PRODUCTS:
        centroids, _ = kmeans_plusplus(x, k, random_state=seed)
    else:
        centroids = x[np.sort(np.random.default_rng(seed).choice(len(x), k, replace=False))]
    # the limits keep faiss from drawing its own sample, and from printing a warning for few points
    engine: Any = faiss.Kmeans(
        x.shape[1], k, niter=1, spherical=spherical, min_points_per_centroid=1, max_points_per_centroid=len(x)
    )
    previous = np.nan
    for _ in _with_progress(range(iterations), description):
        engine.train(x, init_centroids=centroids)  # one iteration at a time, to show progress and stop at convergence
        centroids = np.ascontiguousarray(engine.centroids)
        if engine.obj[-1] == previous:
            break
        previous = engine.obj[-1]
    return centroids


def _with_progress(items: Sequence[T], description: str | None) -> Iterable[T]:
    return items if description is None else track(items, description)
