"""Retrieval against loops that do what the paper says."""

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
    queries, pile = unit(40, 0), unit(300, 1)
    full = queries.astype(np.float64) @ pile.T.astype(np.float64)
    best: dict[int, tuple[float, int]] = {}
    for query, row in enumerate(full):
        for image in np.argsort(-row)[:4]:
            if threshold is None or row[image] > threshold:
                best[int(image)] = max(best.get(int(image), (-2.0, 0)), (row[image], query))
    found = retrieve_samples(queries, pile, k=4, threshold=threshold)
    assert found.row.tolist() == sorted(best)
    assert len(found) < 160  # some are asked for twice
    assert found.query.tolist() == [best[row][1] for row in sorted(best)]
    assert found.similarity == pytest.approx([best[row][0] for row in sorted(best)], abs=1e-6)
    assert found.before_limit == len(found)
    assert found.mode == "sample"


def test_a_limit_takes_first_neighbours_first() -> None:
    queries, pile = unit(20, 0), unit(300, 1)
    first = set(retrieve_samples(queries, pile, k=1).row.tolist())
    every = retrieve_samples(queries, pile, k=5)
    limited = retrieve_samples(queries, pile, k=5, limit=len(first) + 7)
    assert first < set(limited.row.tolist()) < set(every.row.tolist())
    assert len(limited) == len(first) + 7
    assert limited.before_limit == len(every)
    second = sorted(set(retrieve_samples(queries, pile, k=2).row.tolist()) - first)
    assert set(limited.row.tolist()) - first <= set(second)


def test_an_index_may_be_searched_instead() -> None:
    queries, pile = unit(30, 0), unit(2000, 1)
    searcher = build_ivf(pile, codec="flat", lists=8)
    tune_probes(searcher, k=4, target=1.0)
    exact, found = retrieve_samples(queries, pile, k=4), retrieve_samples(queries, pile, k=4, searcher=searcher)
    assert np.isin(exact.row, found.row).mean() > 0.97


def test_clusters_with_more_than_three_queries_give_images() -> None:
    centres = np.eye(12)[:3]
    pile = np.concatenate([unit(200, n, centres[n]) for n in range(3)])
    queries = np.concatenate([unit(4, 10, centres[0]), unit(3, 11, centres[1]), unit(9, 12, centres[2])])
    clusters = kmeans(pile, 3)
    home = [int(np.bincount(clusters.assignment[200 * n : 200 * n + 200]).argmax()) for n in range(3)]
    found = retrieve_clusters(queries, pile, clusters, per_cluster=50)
    assert np.bincount(found.cluster, minlength=3).tolist() == [50 if n != home[1] else 0 for n in range(3)]
    assert (clusters.assignment[found.row] == found.cluster).all()
    assert found.similarity == pytest.approx((pile[found.row] * clusters.centroids[found.cluster]).sum(1), abs=1e-6)
    assert len(set(found.row.tolist())) == 100
    # more than 2 lets the second one in, and small clusters give all they have
    every = retrieve_clusters(queries, pile, clusters, min_queries=2)
    assert every.row.tolist() == list(range(600))


def test_a_limit_is_shared_evenly_and_the_seed_decides() -> None:
    pile, queries = unit(600, 0), unit(200, 1)
    clusters = kmeans(pile, 10)
    found = retrieve_clusters(queries, pile, clusters, limit=95, seed=1)
    count = np.bincount(found.cluster, minlength=10)
    assert len(found) == 95
    assert found.before_limit > 95
    assert count[count > 0].max() - count[count > 0].min() <= 1
    assert found.row.tolist() == retrieve_clusters(queries, pile, clusters, limit=95, seed=1).row.tolist()
    assert found.row.tolist() != retrieve_clusters(queries, pile, clusters, limit=95, seed=2).row.tolist()


def test_no_cluster_with_enough_queries_gives_nothing() -> None:
    pile = unit(100, 0)
    found = retrieve_clusters(unit(3, 1), pile, kmeans(pile, 5))
    assert len(found) == found.before_limit == 0


def test_refusals() -> None:
    pile, queries = unit(50, 0), unit(5, 1)
    clusters = kmeans(pile, 4)
    with pytest.raises(UsageError, match="k is 51, and there are 50"):
        retrieve_samples(queries, pile, k=51)
    with pytest.raises(UsageError, match="give a cosine in"):
        retrieve_samples(queries, pile, threshold=2.0)
    with pytest.raises(UsageError, match="a limit of 0 images"):
        retrieve_samples(queries, pile, limit=0)
    with pytest.raises(UsageError, match="clusters of 50 images for a pile of 49"):
        retrieve_clusters(queries, pile[1:], clusters)
    with pytest.raises(UsageError, match="per_cluster is 0"):
        retrieve_clusters(queries, pile, clusters, per_cluster=0)
    with pytest.raises(DinomedError, match="queries: row 0 has length"):
        retrieve_clusters(3 * queries, pile, clusters)
