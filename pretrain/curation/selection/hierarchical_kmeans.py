"""Balanced sampling from a pool without a query set by hierarchical k-means (Vo et al. 2024, arXiv 2405.15613).

k-means places its centroids where the points are dense. k-means of these centroids, and so on, spreads the centroids
more evenly over the space with each level (section 3.2), and so does resampling within a level (section 3.3). Then the
number of images to keep is divided evenly from the top level down (section 3.4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dinomed.errors import UsageError
from dinomed.pretrain.curation.selection.kmeans import Clusters, assign, even_shares, kmeans
from dinomed.progress import track

RESAMPLINGS = 10


@dataclass(frozen=True)
class Hierarchy:
    """Levels of clusters: `levels[0]` clusters the images, `levels[t]` the centroids of `levels[t - 1]`. The last level
    is the top."""

    levels: tuple[Clusters, ...]

    def labels(self, level: int) -> np.ndarray:
        """Return the cluster of each image at a level, int64 (N,)."""
        label = self.levels[0].assignment
        for clusters in self.levels[1 : level + 1]:
            label = clusters.assignment[label]
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
    """Cluster float32 (N, D) in several levels by Euclidean distance.

    Args:
        counts: number of clusters of each level, strictly falling. The paper uses 10M, 500k, 50k and 10k for 743M
            images.
        resamplings: for each level above the first; 10 in the paper. The first level has none, as in the paper's large
            run, because it takes most of the time.

    Raises:
        UsageError: counts that do not fall, or more clusters than images.
    """
    if not counts or any(above >= below for below, above in pairwise(counts)):
        raise UsageError(f"the numbers of clusters are {list(counts)}; each level needs fewer than the level below it")
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
    """Cluster one level: k-means, then `resamplings` times k-means of the points nearest to each centroid.

    Of each cluster, up to half of the mean cluster size is kept, which is about the paper's setting. Dense clusters
    lose most of their points and so most of their weight, and the centroids move to sparse regions.
    """

    def fit(sample: np.ndarray, step: int) -> Clusters:
        return kmeans(
            sample, count, spherical=False, iterations=iterations, seed=seed + 1000 * step, memory_gib=memory_gib,
            description=None if step else description,
        )  # fmt: skip

    clusters = fit(points, 0)
    num_kept = len(points) // (2 * count)
    if num_kept < 2:  # one point of each cluster would give the same centroids again
        return clusters
    for step in track(range(resamplings), f"{description}: resampling"):
        nearest = nearest_of_each(clusters, num_kept)
        if len(nearest) < count:  # with many equal points, too few clusters have points
            break
        centroids = fit(points[nearest], step + 1).centroids
        clusters = Clusters(centroids, *assign(points, centroids, spherical=False))
    return clusters


def nearest_of_each(clusters: Clusters, count: int) -> np.ndarray:
    """Return at most `count` points of each cluster, those nearest to its centroid; rows int64, ascending."""
    order = np.lexsort((-clusters.closeness, clusters.assignment))
    return clusters.first_of_each(order, np.full(len(clusters.centroids), count))


def balanced_sample(hierarchy: Hierarchy, count: int, *, seed: int = 0) -> np.ndarray:
    """Draw `count` images, divided evenly among the clusters of the top level, then among those below each, and so on.

    Within a cluster of the lowest level, images are drawn at random.

    Returns:
        Rows int64, ascending, each once; all rows if there are at most `count`.

    Raises:
        UsageError: a count below 1.
    """
    if count < 1:
        raise UsageError(f"the balanced sample has {count} images; give at least 1")
    rng = np.random.default_rng(seed)
    levels = hierarchy.levels
    sizes = [levels[0].sizes]  # number of images in each cluster of each level
    for level in levels[1:]:
        sizes.append(np.bincount(level.assignment, weights=sizes[-1], minlength=len(level.centroids)).astype(np.int64))
    shares = even_shares(sizes[-1], count, rng)
    for number in range(len(levels) - 1, 0, -1):
        shares_below = np.zeros(len(sizes[number - 1]), np.int64)
        for members, share in zip(_members(levels[number]), shares, strict=True):
            shares_below[members] = even_shares(sizes[number - 1][members], int(share), rng) if share else 0
        shares = shares_below
    rows = [
        rng.choice(members, share, replace=False) if share < len(members) else members
        for members, share in zip(_members(levels[0]), shares, strict=True)
    ]
    return np.sort(np.concatenate(rows))


def _members(clusters: Clusters) -> list[np.ndarray]:
    """Return the points of each cluster."""
    order = np.argsort(clusters.assignment, kind="stable")
    return np.split(order, clusters.starts[1:])
