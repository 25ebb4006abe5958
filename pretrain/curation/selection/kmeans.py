"""k-means (faiss) with what it leaves to its caller: memory, a seed, a better start, and refusals that say why.

`shares` divides a number evenly, as both samplings from clusters need it.
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
POINTS_EACH = 256  # more points for each centroid make it no better (the default of faiss)
_START_LIMIT = 200_000_000  # points x clusters up to which the start is chosen by k-means++


@dataclass(frozen=True)
class Clusters:
    """Centroids, and where each point went."""

    centroids: np.ndarray  # float32 (K, D); of length 1 if spherical
    assignment: np.ndarray  # int64 (N,)
    closeness: np.ndarray  # float32 (N,): cosine to the centroid if spherical, else minus the squared distance

    @property
    def sizes(self) -> np.ndarray:
        """Points in each cluster, int64 (K,); a cluster may be empty."""
        return np.bincount(self.assignment, minlength=len(self.centroids))


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
    """`k` clusters of float32 (N, D).

    Args:
        spherical: by cosine, with centroids of length 1; else by Euclidean distance.
        memory_gib: bounds how many points the centroids are fitted on, drawn by `seed`. All points are assigned.

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
    """The nearest centroid of each row and how close it is, as in `Clusters`; of any part of the points at a time.

    Args:
        description: of the progress that is shown, if any.
    """
    metric = faiss.METRIC_INNER_PRODUCT if spherical else faiss.METRIC_L2
    nearest, closeness = np.empty(len(x), np.int64), np.empty(len(x), np.float32)
    for rows in _shown(list(blocks(len(x), x.shape[1] * 4)), description and f"{description}: assigning"):
        found, index = faiss.knn(np.ascontiguousarray(x[rows]), centroids, 1, metric=metric)
        nearest[rows], closeness[rows] = index[:, 0], found[:, 0] if spherical else -found[:, 0]
    return nearest, closeness


def shares(sizes: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """How many to take of each, int64, as evenly as the sizes allow: min(size, c) with c such that `total` is met.

    What is left over by rounding goes to some that have more, drawn at random. Everything, if there is no more.

    >>> shares(np.array([100, 5, 1]), 9, np.random.default_rng(0)).tolist()
    [4, 4, 1]
    """
    sizes = np.asarray(sizes, np.int64)
    if sizes.sum() <= total:
        return sizes.copy()
    low, high = 0, int(sizes.max())  # the largest c whose sum does not exceed the total
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= total else (low, middle - 1)
    out = np.minimum(sizes, low)
    more = rng.choice(np.flatnonzero(sizes > low), total - int(out.sum()), replace=False)
    out[more] += 1
    return out


def _check_finite(x: np.ndarray) -> None:
    for rows in blocks(len(x), x.shape[1] * 4):
        bad = ~np.isfinite(x[rows]).all(axis=1)
        if bad.any():
            raise DinomedError(f"k-means: row {rows.start + int(bad.argmax())} holds values that are not finite")


def _sample(x: np.ndarray, k: int, memory_gib: float, seed: int) -> np.ndarray:
    """What the centroids are fitted on; at least one point for each."""
    affordable = int(memory_gib * GIB / 2 / (x.shape[1] * 4))
    count = min(len(x), k * POINTS_EACH, max(affordable, k))
    if count == len(x):
        return np.ascontiguousarray(x)
    return x[np.sort(np.random.default_rng(seed).choice(len(x), count, replace=False))]


def _fit(x: np.ndarray, k: int, spherical: bool, iterations: int, seed: int, description: str | None) -> np.ndarray:
    if len(x) * k <= _START_LIMIT:
        centroids, _ = kmeans_plusplus(x, k, random_state=seed)
    else:
        centroids = x[np.sort(np.random.default_rng(seed).choice(len(x), k, replace=False))]
    # faiss would draw a sample of its own, and would print a warning for small piles
    engine: Any = faiss.Kmeans(
        x.shape[1], k, niter=1, spherical=spherical, min_points_per_centroid=1, max_points_per_centroid=len(x)
    )
    before = np.nan
    for _ in _shown(range(iterations), description):
        engine.train(x, init_centroids=centroids)  # one step: so that progress is seen, and the end of it
        centroids = np.ascontiguousarray(engine.centroids)
        if engine.obj[-1] == before:
            break
        before = engine.obj[-1]
    return centroids


def _shown(items: Sequence[T], description: str | None) -> Iterable[T]:
    return items if description is None else track(items, description)
