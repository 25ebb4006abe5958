"""Balanced sampling: compared with the algorithm written out, and measured by its purpose."""

import numpy as np
import pytest
from scipy.stats import entropy

from dinomed.errors import UsageError
from dinomed.pretrain.curation.selection.hierarchical_kmeans import (
    Hierarchy,
    balanced_sample,
    cluster_level,
    hierarchical_kmeans,
    nearest_of_each,
)
from dinomed.pretrain.curation.selection.kmeans import Clusters, kmeans


def blobs(counts: list[int], dimension: int = 8, spread: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around random centres, and the number of the centre of each."""
    rng = np.random.default_rng(0)
    label = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    x = rng.normal(size=(len(counts), dimension))[label]
    x = x / np.linalg.norm(x, axis=1, keepdims=True) + spread * rng.normal(size=x.shape)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), label


def level(assignment: list[int], count: int, closeness: list[float] | None = None) -> Clusters:
    return Clusters(
        np.zeros((count, 2), np.float32),
        np.array(assignment),
        np.array(closeness or [0.0] * len(assignment), np.float32),
    )


def test_a_number_is_divided_evenly_from_the_top_down() -> None:
    """Cluster a has leaves of 8 and 2 images, b one leaf of 4. Of 8 images each gives 4; each leaf of a gives 2."""
    leaves = [0] * 8 + [1] * 2 + [2] * 4
    hierarchy = Hierarchy((level(leaves, 3), level([0, 0, 1], 2)))
    assert hierarchy.labels(1).tolist() == [0] * 10 + [1] * 4
    for seed in range(5):
        chosen = balanced_sample(hierarchy, 8, seed=seed)
        assert np.bincount(np.array(leaves)[chosen]).tolist() == [2, 2, 4]
    # of 11 images, b gives all its 4, a gives its 2 and 5 of its 8
    assert np.bincount(np.array(leaves)[balanced_sample(hierarchy, 11)]).tolist() == [5, 2, 4]
    assert balanced_sample(hierarchy, 14).tolist() == balanced_sample(hierarchy, 99).tolist() == list(range(14))


def test_empty_clusters_give_no_images() -> None:
    hierarchy = Hierarchy((level([0, 0, 3], 4), level([0, 0, 1, 2], 4)))
    chosen = balanced_sample(hierarchy, 2)
    assert len(chosen) == 2
    assert 2 in chosen


def test_the_nearest_of_each_cluster() -> None:
    clusters = level([0, 1, 0, 1, 0, 0], 3, [-4.0, -1.0, -2.0, -3.0, -1.0, -3.0])
    assert nearest_of_each(clusters, 2).tolist() == [1, 2, 3, 4]


def test_a_level_is_k_means_of_the_nearest_points_again_and_again() -> None:
    """The steps of section 3.3, written out, with distances in float64."""
    x, _ = blobs([300, 60, 20, 10], spread=0.4)
    count, keep = 8, len(x) // 16
    centroids = kmeans(x, count, spherical=False, seed=4, iterations=50).centroids
    for step in (1, 2, 3):
        distance = ((x[:, None].astype(np.float64) - centroids[None]) ** 2).sum(2)
        home = distance.argmin(1)
        chosen: list[int] = []
        for n in range(count):
            members = np.flatnonzero(home == n)
            chosen += members[np.argsort(distance[members, n])][:keep].tolist()
        again = kmeans(x[np.sort(chosen)], count, spherical=False, seed=4 + 1000 * step, iterations=50)
        centroids = again.centroids
    clusters = cluster_level(x, count, 3, seed=4)
    assert clusters.centroids == pytest.approx(centroids, abs=1e-6)


def balance(label: np.ndarray, kinds: int) -> float:
    """Normalised entropy: 1 if all kinds are equally frequent."""
    return float(entropy(np.bincount(label, minlength=kinds)) / np.log(kinds))


def test_the_sample_is_more_balanced_than_the_pool_and_than_flat_k_means() -> None:
    """Long-tailed kinds, as in the paper's figure 2: the largest is 100 times the smallest."""
    counts = [int(2000 / rank**1.6) + 20 for rank in range(1, 21)]
    x, label = blobs(counts, dimension=16, spread=0.25)
    hierarchy = hierarchical_kmeans(x, [300, 60, 20], seed=0)
    sample = balanced_sample(hierarchy, 600, seed=0)
    assert len(sample) == len(set(sample.tolist())) == 600
    flat = balanced_sample(Hierarchy((kmeans(x, 300, spherical=False),)), 600, seed=0)
    of_pool, of_sample, of_flat = (balance(labels, 20) for labels in (label, label[sample], label[flat]))
    assert of_sample > of_pool + 0.15
    assert of_sample > of_flat
    assert (np.bincount(label[sample], minlength=20) > 0).all()


def test_the_same_seed_gives_the_same_sample() -> None:
    x, _ = blobs([300, 30, 30], spread=0.5)
    first, second = (balanced_sample(hierarchical_kmeans(x, [40, 8], seed=2), 50, seed=3) for _ in range(2))
    assert first.tolist() == second.tolist()
    assert first.tolist() != balanced_sample(hierarchical_kmeans(x, [40, 8], seed=2), 50, seed=4).tolist()


def test_wrong_settings_are_errors() -> None:
    x, _ = blobs([30])
    for counts in ([], [5, 5], [4, 6]):
        with pytest.raises(UsageError, match="each level needs fewer"):
            hierarchical_kmeans(x, counts)
    with pytest.raises(UsageError, match="there are 30 vectors"):
        hierarchical_kmeans(x, [31, 4])
    with pytest.raises(UsageError, match="the balanced sample has 0 images"):
        balanced_sample(hierarchical_kmeans(x, [6, 2]), 0)
