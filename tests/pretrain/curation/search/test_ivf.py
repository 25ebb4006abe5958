"""The approximate search against the exact search: its pairs are correct, and its recall is as measured."""

from pathlib import Path

import numpy as np
import pytest

from dinomed.errors import DinomedError, UsageError
from dinomed.pretrain.curation.search.exact import near_pairs, top_k
from dinomed.pretrain.curation.search.ivf import (
    Codec,
    build_ivf,
    choose_codec,
    load_ivf,
    tune_probes,
    write_ivf,
)
from dinomed.pretrain.curation.search.pairs import SimilarPairs, merge_pairs


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """4,000 unit vectors in 200 clusters, each of 20: its members have cosines of about 0.7."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(200, 64))
    x = np.repeat(centres, 20, axis=0) + 0.65 * rng.normal(size=(4000, 64))
    x = x[rng.permutation(len(x))]
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def keys(pairs: SimilarPairs) -> set[tuple[int, int]]:
    return set(zip(pairs.i.tolist(), pairs.j.tolist(), strict=True))


@pytest.mark.parametrize("codec", ["flat", "sq8", "pq"])
def test_pairs_are_correct_and_the_recall_is_as_measured(x: np.ndarray, codec: Codec) -> None:
    index = build_ivf(x, codec=codec, lists=64)
    measured = tune_probes(index, k=12, threshold=0.6, target=0.9, queries=500)
    assert index.probes == measured.probes < 64
    best, exact = near_pairs(x, threshold=0.6, k=12), near_pairs(x, threshold=0.6)
    approximate = index.near_pairs(threshold=0.6, k=12)
    similarity = dict(zip(zip(exact.i, exact.j, strict=True), exact.similarity, strict=True))
    assert all(similarity[i, j] == s for i, j, s in zip(*vars(approximate).values(), strict=True))
    recall = len(keys(best) & keys(approximate)) / len(best)
    assert measured.recall >= 0.9
    # a pair can be found from both of its rows, and the recall is measured from one; the recall of 500 rows is known
    # to about 0.03
    assert recall > measured.recall - 0.04


def test_all_lists_of_a_flat_codec_give_the_exact_answer(x: np.ndarray) -> None:
    index = build_ivf(x, codec="flat", lists=16)
    measured = tune_probes(index, k=5, target=1.0)
    assert (measured.recall, measured.of, measured.queries) == (1.0, 5000, 1000)
    index.measured = None
    index.index.nprobe = 16
    candidates = index.candidates(x[:50], 5, probes=16)
    exact = top_k(x[:50], x, 5)[1]
    assert all(set(mine) <= set(theirs) for mine, theirs in zip(exact, candidates, strict=True))


def test_the_nearest_of_queries(x: np.ndarray) -> None:
    index = build_ivf(x, codec="sq8", lists=32)
    tune_probes(index, k=4, target=0.97)
    similarity, rows = index.top_k(x[:200], 4)
    exact_similarity, exact = top_k(x[:200], x, 4)
    assert (rows[:, 0] == np.arange(200)).mean() > 0.95
    assert np.mean([np.isin(mine, theirs).mean() for mine, theirs in zip(exact, rows, strict=True)]) > 0.93
    assert (similarity <= exact_similarity).all()


def test_pairs_with_other_vectors_and_in_parts(x: np.ndarray) -> None:
    index = build_ivf(x[:3000], codec="flat", lists=32)
    tune_probes(index, k=8, threshold=0.6, target=0.99)
    whole = index.near_pairs(x[3000:], threshold=0.6, k=8)
    exact = near_pairs(x[3000:], x[:3000], threshold=0.6, k=8)
    assert len(keys(whole) & keys(exact)) / len(exact) > 0.95
    within = index.near_pairs(threshold=0.6, k=8)
    parts = [index.near_pairs(threshold=0.6, k=8, part=(n, 2)) for n in range(2)]
    merged = merge_pairs(parts, k=8)
    # a pair that is among the best of one of its rows only is found in one part; the best of both parts are the same
    assert keys(merged) == keys(within)
    assert (merged.similarity == within.similarity).all()


def test_the_same_seed_gives_the_same_index(x: np.ndarray) -> None:
    first, second = (build_ivf(x, codec="pq", lists=32, seed=3) for _ in range(2))
    assert (first.top_k(x[:100], 5)[1] == second.top_k(x[:100], 5)[1]).all()


def test_without_near_pairs_the_recall_is_that_of_the_nearest(x: np.ndarray) -> None:
    index = build_ivf(x, codec="flat", lists=32)
    assert tune_probes(index, k=4, threshold=0.999, target=0.9).of == 1000


def test_a_recall_below_the_target_is_a_warning(x: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2000, 64))
    noise = (noise / np.linalg.norm(noise, axis=1, keepdims=True)).astype(np.float32)
    measured = tune_probes(build_ivf(noise, codec="pq", lists=8), k=3, target=1.0)
    assert measured.recall < 1
    assert measured.probes == 8
    assert "its codes are too short" in " ".join(capsys.readouterr().err.split())


def test_the_codec_follows_the_memory() -> None:
    assert [choose_codec(10**6, 512, gib) for gib in (4, 1, 0.2)] == ["flat", "sq8", "pq"]
    with pytest.raises(UsageError, match=r"an index of 100,000,000 vectors needs 9\.\d GiB, 2 are allowed"):
        choose_codec(10**8, 512, 2)


def test_an_index_is_written_and_read(x: np.ndarray, tmp_path: Path) -> None:
    index = build_ivf(x, codec="sq8", lists=32)
    tune_probes(index, k=5)
    path = tmp_path / "pile.index"
    write_ivf(index, path)
    again = load_ivf(path, x)
    assert again.measured == index.measured
    assert (again.top_k(x[:50], 5)[1] == index.top_k(x[:50], 5)[1]).all()
    with pytest.raises(DinomedError, match="is of 4000 vectors of 64 values, not of 3999 of 64"):
        load_ivf(path, x[1:])
    whole = path.read_bytes()
    path.unlink()  # `again` has the old file mapped
    path.write_bytes(whole[:-100])
    with pytest.raises(DinomedError, match="is damaged: size or checksum does not match"):
        load_ivf(path, x)
    path.unlink()
    with pytest.raises(DinomedError, match="is missing"):
        load_ivf(path, x)
    path.with_name("pile.index.json").write_text("[]")
    with pytest.raises(DinomedError, match="does not describe an index"):
        load_ivf(path, x)


def test_wrong_input_is_named_in_the_message(x: np.ndarray) -> None:
    index = build_ivf(x[:100], codec="flat")
    with pytest.raises(UsageError, match="k is 100, and there are 99"):
        index.near_pairs(threshold=0.5, k=100)
    with pytest.raises(UsageError, match="k is 101, and there are 100"):
        index.top_k(x[:3], 101)
    with pytest.raises(DinomedError, match="dimensions 32 and 64"):
        index.near_pairs(x[:5, :32] / np.linalg.norm(x[:5, :32], axis=1, keepdims=True), threshold=0.5, k=1)
    with pytest.raises(DinomedError, match="nan or infinite"):
        build_ivf(np.full((100, 8), np.nan, np.float32))
