"""k-means against Lloyd's algorithm written out and against scikit-learn; properties of even shares."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans, kmeans_plusplus

from dinomed.errors import DinomedError, UsageError
from dinomed.pretrain.curation.selection import kmeans as module
from dinomed.pretrain.curation.selection.kmeans import assign, even_shares, kmeans


def blobs(counts: list[int], dimension: int = 8, spread: float = 0.15, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around random centres, and the number of the centre of each."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    x = rng.normal(size=(len(counts), dimension))[label]
    x = x / np.linalg.norm(x, axis=1, keepdims=True) + spread * rng.normal(size=x.shape)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), label


def lloyd(x: np.ndarray, centroids: np.ndarray, spherical: bool) -> np.ndarray:
    """Lloyd's algorithm until convergence, in float64."""
    x, centroids = x.astype(np.float64), centroids.astype(np.float64)
    for _ in range(100):
        nearest = ((x[:, None] - centroids[None]) ** 2).sum(2).argmin(1)
        centroids = np.stack([x[nearest == n].mean(0) for n in range(len(centroids))])
        if spherical:
            centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    return centroids


@pytest.mark.parametrize("spherical", [True, False])
def test_the_centroids_are_those_of_lloyds_algorithm(spherical: bool) -> None:
    x, _ = blobs([60, 50, 40, 30], spread=0.4)
    start, _ = kmeans_plusplus(x, 6, random_state=5)
    clusters = kmeans(x, 6, spherical=spherical, seed=5, iterations=100)
    # float32, and means of about 30 points
    assert clusters.centroids == pytest.approx(lloyd(x, start, spherical), abs=1e-5)
    distance = ((x[:, None] - clusters.centroids[None]) ** 2).sum(2)
    assert (clusters.assignment == distance.argmin(1)).all()
    closeness = (x * clusters.centroids[clusters.assignment]).sum(1) if spherical else -distance.min(1)
    assert clusters.closeness == pytest.approx(closeness, abs=1e-5)
    assert (clusters.sizes == np.bincount(clusters.assignment, minlength=6)).all()
    assert spherical == np.allclose(np.linalg.norm(clusters.centroids, axis=1), 1, atol=1e-5)


def test_the_clusters_are_as_good_as_those_of_scikit_learn() -> None:
    x, _ = blobs([100] * 10, spread=0.2)
    clusters = kmeans(x, 10, spherical=False, seed=0)
    oracle = KMeans(10, n_init=1, random_state=0).fit(x)
    assert -clusters.closeness.sum() < 1.1 * oracle.inertia_


def test_only_the_seed_changes_the_result() -> None:
    x, _ = blobs([200, 100, 50], spread=0.5)
    first, second, other_seed = kmeans(x, 12, seed=1), kmeans(x, 12, seed=1), kmeans(x, 12, seed=2)
    assert (first.centroids == second.centroids).all()
    assert (first.assignment == second.assignment).all()
    assert not np.array_equal(first.centroids, other_seed.centroids)


def test_little_memory_fits_on_a_sample_and_assigns_all(monkeypatch: pytest.MonkeyPatch) -> None:
    x, label = blobs([3000, 3000, 3000], spread=0.1)
    seen = []
    monkeypatch.setattr(
        module, "_fit", lambda sample, *arguments, fit=module._fit: seen.append(len(sample)) or fit(sample, *arguments)
    )
    clusters = kmeans(x, 3, memory_gib=200 * 8 * 4 * 2 / 2**30)
    assert seen == [200]
    assert len(clusters.assignment) == 9000
    assert len({(int(a), int(b)) for a, b in zip(clusters.assignment, label, strict=True)}) == 3


def test_a_large_start_is_random_and_still_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_PLUSPLUS_PRODUCTS", 0)
    x, _ = blobs([100] * 10, spread=0.2)
    clusters = kmeans(x, 40, seed=0, spherical=False)
    assert -clusters.closeness.sum() < 1.15 * KMeans(40, n_init=1, random_state=0).fit(x).inertia_


def test_parts_are_assigned_as_the_whole() -> None:
    x, _ = blobs([200, 100, 50], spread=0.5)
    clusters = kmeans(x, 12)
    parts = [assign(part, clusters.centroids) for part in np.array_split(x, 4)]
    assert (np.concatenate([part[0] for part in parts]) == clusters.assignment).all()


def test_as_many_clusters_as_points_and_equal_points() -> None:
    x, _ = blobs([7])
    assert sorted(kmeans(x, 7).assignment.tolist()) == list(range(7))
    same = np.repeat(x[:1], 50, axis=0)
    clusters = kmeans(same, 3)
    assert clusters.sizes.sum() == 50
    assert np.isfinite(clusters.centroids).all()


def test_wrong_input_is_an_error() -> None:
    x, _ = blobs([20])
    with pytest.raises(UsageError, match="the number of clusters is 21, and there are 20 vectors"):
        kmeans(x, 21)
    x[4, 1] = np.inf
    with pytest.raises(DinomedError, match="row 4 has nan or infinite values"):
        kmeans(x, 2)


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 60), st.integers(0, 9))
def test_shares_are_as_even_as_the_sizes_allow(sizes: list[int], total: int, seed: int) -> None:
    shares = even_shares(np.array(sizes), total, np.random.default_rng(seed))
    assert shares.sum() == min(total, sum(sizes))
    assert (shares <= sizes).all()
    # a share below the size of its cluster is at most one less than the largest share
    for share, size in zip(shares, sizes, strict=True):
        assert share == size or share >= shares.max() - 1
