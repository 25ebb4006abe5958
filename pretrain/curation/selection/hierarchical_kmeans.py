"""Balanced sampling from a pile with no query set: hierarchical k-means (Vo et al. 2024, arXiv 2405.15613).

k-means puts its centroids where the points are. k-means of those centroids, and so on, spreads them more evenly over
the space with each level (section 3.2), and resampling within a level does the same (section 3.3). Then a number of
images is divided evenly from the top down (section 3.4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dinomed.errors import UsageError
from dinomed.pretrain.curation.selection.kmeans import Clusters, assign, kmeans, shares
from dinomed.progress import track

RESAMPLINGS = 10


@dataclass(frozen=True)
class Hierarchy:
    """`levels[0]` clusters the images, `levels[t]` the centroids of `levels[t - 1]`; the last is the top."""

    levels: tuple[Clusters, ...]

    def labels(self, level: int) -> np.ndarray:
        """The cluster of each image at a level, int64 (N,)."""
        label = self.levels[0].assignment
        for above in self.levels[1 : level + 1]:
            label = above.assignment[label]
        return label


def hierarchical_kmeans(
    x: np.ndarray,
    counts: Sequence[int],
    *,
    resamplings: int = RESAMPLINGS,
    iterations: int = 50,
    seed: int = 0,
    memory_gib: float = 2.0,
) -> Hierarchy:
    """Clusters of clusters of float32 (N, D), by Euclidean distance.

    Args:
        counts: clusters of each level, falling; the paper has 10M, 500k, 50k and 10k for 743M images.
        resamplings: in each level above the first; the paper's 10. (Like the paper's own large run, the first level
            has none: it is the one that is expensive.)

    Raises:
        UsageError: counts that do not fall, or more clusters than images.
    """
    if not counts or any(above >= below for below, above in pairwise(counts)):
        raise UsageError(f"clusters of the levels {list(counts)}: each level needs fewer than the one below it")
    levels: list[Clusters] = []
    points = x
    for level, count in enumerate(counts):
        levels.append(
            cluster_level(
                points, count, resamplings if level else 0, iterations=iterations, seed=seed + level,
                memory_gib=memory_gib, description=f"level {level + 1} of {len(counts)}",
            )
        )  # fmt: skip
        points = levels[-1].centroids
    return Hierarchy(tuple(levels))


def cluster_level(
    points: np.ndarray,
    count: int,
    resamplings: int,
    *,
    iterations: int = 50,
    seed: int = 0,
    memory_gib: float = 2.0,
    description: str = "level",
) -> Clusters:
    """One level: k-means, then k-means of the points nearest to each centroid, as often as `resamplings` says.

    Half of the mean size of a cluster is taken of each, about what the paper's settings are: dense clusters lose most
    of their points, and so most of their weight, and the centroids move to where the points are sparse.
    """

    def fit(some: np.ndarray, step: int) -> Clusters:
        return kmeans(
            some, count, spherical=False, iterations=iterations, seed=seed + 1000 * step, memory_gib=memory_gib,
            description=None if step else description,
        )  # fmt: skip

    clusters = fit(points, 0)
    keep = len(points) // (2 * count)
    if keep < 2:  # one point of each would give the same centroids for ever
        return clusters
    for step in track(range(resamplings), f"{description}: resampling"):
        chosen = nearest_of_each(clusters, keep)
        if len(chosen) < count:  # many equal points: too few clusters hold any
            break
        centroids = fit(points[chosen], step + 1).centroids
        clusters = Clusters(centroids, *assign(points, centroids, spherical=False))
    return clusters


def nearest_of_each(clusters: Clusters, count: int) -> np.ndarray:
    """At most `count` points of each cluster, those nearest to its centroid; rows, int64, ascending."""
    order = np.lexsort((-clusters.closeness, clusters.assignment))
    starts = np.concatenate([[0], np.cumsum(clusters.sizes)[:-1]])
    rank = np.arange(len(order)) - starts[clusters.assignment[order]]
    return np.sort(order[rank < count])


def balanced_sample(hierarchy: Hierarchy, count: int, *, closest: bool = False, seed: int = 0) -> np.ndarray:
    """`count` images, divided evenly between the clusters of the top level, then between those below each, and so on.

    Args:
        closest: of the lowest clusters take the images nearest to the centroid instead of random ones.

    Returns:
        Rows, int64, ascending, each once; all of them if there are no more than `count`.

    Raises:
        UsageError: a count below 1.
    """
    if count < 1:
        raise UsageError(f"a balanced sample of {count} images; give at least 1")
    rng = np.random.default_rng(seed)
    levels = hierarchy.levels
    sizes = [levels[0].sizes]  # images below each cluster of each level
    for above in levels[1:]:
        sizes.append(np.bincount(above.assignment, weights=sizes[-1], minlength=len(above.centroids)).astype(np.int64))
    wanted = shares(sizes[-1], count, rng)
    for level in range(len(levels) - 1, 0, -1):
        below = np.zeros(len(sizes[level - 1]), np.int64)
        for members, target in zip(_members(levels[level]), wanted, strict=True):
            below[members] = shares(sizes[level - 1][members], int(target), rng) if target else 0
        wanted = below
    chosen = []
    for members, target in zip(_members(levels[0]), wanted, strict=True):
        if closest:
            order = members[np.argsort(-levels[0].closeness[members], kind="stable")]
            chosen.append(order[:target])
        else:
            chosen.append(rng.choice(members, target, replace=False) if target < len(members) else members)
    return np.sort(np.concatenate(chosen))


def _members(clusters: Clusters) -> list[np.ndarray]:
    """The points of each cluster."""
    order = np.argsort(clusters.assignment, kind="stable")
    return np.split(order, np.cumsum(clusters.sizes)[:-1])
