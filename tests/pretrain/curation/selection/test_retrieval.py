"""Retrieval compared with loops that follow the paper."""

import numpy as np
import pytest

from dinomed.errors import DinomedError, UsageError
from dinomed.pretrain.curation.search.ivf import build_ivf, tune_probes
from dinomed.pretrain.curation.selection.kmeans import kmeans
from dinomed.pretrain.curation.selection.retrieval import choose_mode, retrieve_clusters, retrieve_samples


def unit(count: int, seed: int, around: np.ndarray | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 12)) + (0 if around is None else 4 * around)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_the_mode_follows_the_size_of_the_query_set() -> None:
    assert [choose_mode(n) for n in (1, 1_000_000, 1_000_001)] == ["cluster", "cluster", "sample"]
    assert choose_mode(500, sample_from=100) == "sample"


@pytest.mark.parametrize("threshold", [None, 0.75])
def test_samples_are_the_nearest_of_each_query_each_once(threshold: float | None) -> None:
    queries, pool = unit(40, 0), unit(300, 1)
    full = queries.astype(np.float64) @ pool.T.astype(np.float64)
    best: dict[int, tuple[float, int]] = {}
    for query, row in enumerate(full):
        for image in np.argsort(-row)[:4]:
            if threshold is None or row[image] > threshold:
                best[int(image)] = max(best.get(int(image), (-2.0, 0)), (row[image], query))
    retrieved = retrieve_samples(queries, pool, k=4, threshold=threshold)
    assert retrieved.row.tolist() == sorted(best)
    assert len(retrieved) < 160  # several queries retrieve the same image
    assert retrieved.query.tolist() == [best[row][1] for row in sorted(best)]
    assert retrieved.similarity == pytest.approx([best[row][0] for row in sorted(best)], abs=1e-6)
    assert retrieved.before_limit == len(retrieved)
    assert retrieved.mode == "sample"


def test_a_limit_takes_first_neighbours_first() -> None:
    queries, pool = unit(20, 0), unit(300, 1)
    first = set(retrieve_samples(queries, pool, k=1).row.tolist())
    every = retrieve_samples(queries, pool, k=5)
    limited = retrieve_samples(queries, pool, k=5, limit=len(first) + 7)
    assert first < set(limited.row.tolist()) < set(every.row.tolist())
    assert len(limited) == len(first) + 7
    assert limited.before_limit == len(every)
    second = sorted(set(retrieve_samples(queries, pool, k=2).row.tolist()) - first)
    assert set(limited.row.tolist()) - first <= set(second)


def test_an_approximate_index_finds_nearly_the_same() -> None:
    queries, pool = unit(30, 0), unit(2000, 1)
    index = build_ivf(pool, codec="flat", lists=8)
    tune_probes(index, k=4, target=1.0)
    exact, approximate = retrieve_samples(queries, pool, k=4), retrieve_samples(queries, pool, k=4, index=index)
    assert np.isin(exact.row, approximate.row).mean() > 0.97


def test_clusters_with_more_than_three_queries_give_images() -> None:
    centres = np.eye(12)[:3]
    pool = np.concatenate([unit(200, n, centres[n]) for n in range(3)])
    queries = np.concatenate([unit(4, 10, centres[0]), unit(3, 11, centres[1]), unit(9, 12, centres[2])])
    clusters = kmeans(pool, 3)
    home = [int(np.bincount(clusters.assignment[200 * n : 200 * n + 200]).argmax()) for n in range(3)]
    retrieved = retrieve_clusters(queries, pool, clusters, per_cluster=50)
    assert np.bincount(retrieved.cluster, minlength=3).tolist() == [50 if n != home[1] else 0 for n in range(3)]
    assert (clusters.assignment[retrieved.row] == retrieved.cluster).all()
    assert retrieved.similarity == pytest.approx(
        (pool[retrieved.row] * clusters.centroids[retrieved.cluster]).sum(1), abs=1e-6
    )
    assert len(set(retrieved.row.tolist())) == 100
    # with more than 2 queries the second cluster counts too, and small clusters give all their images
    every = retrieve_clusters(queries, pool, clusters, min_queries=2)
    assert every.row.tolist() == list(range(600))


def test_clusters_share_a_limit_evenly_and_the_seed_draws_the_images() -> None:
    pool, queries = unit(600, 0), unit(200, 1)
    clusters = kmeans(pool, 10)
    retrieved = retrieve_clusters(queries, pool, clusters, limit=95, seed=1)
    count = np.bincount(retrieved.cluster, minlength=10)
    assert len(retrieved) == 95
    assert retrieved.before_limit > 95
    assert count[count > 0].max() - count[count > 0].min() <= 1
    assert retrieved.row.tolist() == retrieve_clusters(queries, pool, clusters, limit=95, seed=1).row.tolist()
    assert retrieved.row.tolist() != retrieve_clusters(queries, pool, clusters, limit=95, seed=2).row.tolist()


def test_no_cluster_with_enough_queries_gives_nothing() -> None:
    pool = unit(100, 0)
    retrieved = retrieve_clusters(unit(3, 1), pool, kmeans(pool, 5))
    assert len(retrieved) == retrieved.before_limit == 0


def test_wrong_settings_are_errors() -> None:
    pool, queries = unit(50, 0), unit(5, 1)
    clusters = kmeans(pool, 4)
    with pytest.raises(UsageError, match="k is 51, and there are 50"):
        retrieve_samples(queries, pool, k=51)
    with pytest.raises(UsageError, match="give a cosine in"):
        retrieve_samples(queries, pool, threshold=2.0)
    with pytest.raises(UsageError, match="the limit is 0 images"):
        retrieve_samples(queries, pool, limit=0)
    with pytest.raises(UsageError, match="clusters are of 50 images, and the pool has 49"):
        retrieve_clusters(queries, pool[1:], clusters)
    with pytest.raises(UsageError, match="per_cluster is 0"):
        retrieve_clusters(queries, pool, clusters, per_cluster=0)
    with pytest.raises(DinomedError, match="queries: row 0 has length"):
        retrieve_clusters(3 * queries, pool, clusters)
