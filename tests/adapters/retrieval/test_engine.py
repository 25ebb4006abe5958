"""HNSW and IVF, compared with a float64 ranking, and manipulated graphs."""

import numpy as np
import pytest

from dinomed.adapters.retrieval.engine import build_graph, num_probes, parse_kind, restore, search_graph
from dinomed.errors import DinomedError, UsageError


def clustered(count: int, dimension: int = 32, seed: int = 0) -> np.ndarray:
    """Vectors of length 1 around a hundred centres: neighbours mean something, as they do in features."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((100, dimension))
    x = centres[rng.integers(0, 100, count)] + 0.5 * rng.standard_normal((count, dimension))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(4000)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_approximate_search_finds_nearly_all_neighbours_of_a_float64_ranking(kind: str, vectors: np.ndarray) -> None:
    queries = clustered(100, seed=1)
    index = restore(kind, vectors, build_graph(kind, vectors))
    similarities, rows = search_graph(index, queries, 10)
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    targets = np.argsort(-exact, axis=1)[:, :10]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, targets, strict=True)])
    assert recall > 0.95  # measured: 1.000 (hnsw), 0.997 (ivf)
    assert np.abs(similarities - np.take_along_axis(exact, rows, axis=1)).max() < 1e-5  # float32 sums of 32 products


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_a_restored_graph_returns_the_neighbours_of_the_built_one(kind: str, vectors: np.ndarray) -> None:
    arrays = build_graph(kind, vectors)
    first, second = (restore(kind, vectors, {k: v.copy() for k, v in arrays.items()}) for _ in range(2))
    queries = clustered(20, seed=2)
    assert np.array_equal(search_graph(first, queries, 7)[1], search_graph(second, queries, 7)[1])


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_a_few_vectors_are_enough(kind: str, count: int) -> None:
    vectors = clustered(count)
    _, rows = search_graph(restore(kind, vectors, build_graph(kind, vectors)), vectors[:1], count)
    assert sorted(rows[0]) == list(range(count))
    assert rows[0, 0] == 0


def test_a_tampered_graph_is_refused_before_faiss_follows_it(vectors: np.ndarray) -> None:
    part = vectors[:500]
    good = build_graph("hnsw", part)
    high = int(np.argmax(good["levels"]))

    def changed(name: str, place: object, value: int) -> dict[str, np.ndarray]:
        arrays = {key: array.copy() for key, array in good.items()}
        arrays[name][place] = value
        return arrays

    low = int(np.flatnonzero(good["levels"] == 1)[0])  # a node of the lowest level only
    slots = 64  # links of a node on the lowest level: twice HNSW_LINKS
    start = int(np.where(good["levels"][:high] > 1, slots + 32 * (good["levels"][:high] - 1), slots).sum())
    hostile = [
        changed("neighbors", 3, 10**8),  # far beyond the end
        changed("neighbors", 3, 500),  # one beyond it
        changed("neighbors", 3, -2),
        changed("neighbors", start + slots, low),  # a node that is not on that level: its links would be another's
        changed("levels", 5, 3),  # links no longer belong to their nodes
        changed("levels", 5, -1),
        changed("levels", 5, 10**6),
        changed("entry", 0, 500),
        changed("entry", 0, -1),
        changed("entry", 1, 99),
        {**good, "neighbors": good["neighbors"][:-1]},
        {**good, "levels": good["levels"][:-1]},
        {**good, "levels": good["levels"].astype(np.int64)},
        {key: value for key, value in good.items() if key != "entry"},
    ]
    for arrays in hostile:
        with pytest.raises(DinomedError, match=r"graph|missing or of another type"):
            restore("hnsw", part, arrays)
    centroids = build_graph("ivf", part)["centroids"]
    for wrong in (centroids[:, :-1].copy(), centroids[:0], np.full_like(centroids, np.nan)):
        with pytest.raises(DinomedError, match="centroids"):
            restore("ivf", part, {"centroids": wrong})


def test_an_eighth_of_the_lists_is_searched() -> None:
    assert num_probes(1) == 1
    assert num_probes(1264) == 158


def test_a_misspelt_kind_is_named() -> None:
    with pytest.raises(UsageError, match="did you mean 'hnsw'"):
        parse_kind("hnws")
