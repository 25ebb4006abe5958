"""The exact search against products in float64: with every bound and precision, in parts and in threads."""

import tracemalloc
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinomed.errors import DinomedError, UsageError
from dinomed.pretrain.curation.search import bound as bounds
from dinomed.pretrain.curation.search import exact as neighbors
from dinomed.pretrain.curation.search import low_precision as products
from dinomed.pretrain.curation.search import tiles
from dinomed.pretrain.curation.search.bound import CosineBound, fit_bound, head_and_tail_length
from dinomed.pretrain.curation.search.exact import near_pairs, top_k
from dinomed.pretrain.curation.search.low_precision import BFloat16Product, Product, fit_int8_product, measure_speedups
from dinomed.pretrain.curation.search.pairs import SimilarPairs, from_table, merge_pairs
from dinomed.pretrain.curation.search.tiles import in_threads


def features(count: int, dimension: int = 64, decay: float = 1.0, seed: int = 0) -> np.ndarray:
    """Clustered unit vectors whose spectrum falls as a power, one in five a near copy of another."""
    rng = np.random.default_rng(seed)
    scale = np.arange(1, dimension + 1) ** (-decay / 2)
    centres = rng.normal(size=(max(count // 40, 1), dimension))
    x = centres[rng.integers(0, len(centres), count)] + 1.5 * rng.normal(size=(count, dimension))
    copies = count // 5
    x[:copies] = x[rng.integers(copies, count, copies)] + rng.uniform(0, 1, (copies, 1)) * rng.normal(size=(dimension,))
    x = (x * scale)[rng.permutation(count)]
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x.astype(np.float64) @ y.astype(np.float64).T).astype(np.float32)


def oracle(x: np.ndarray, y: np.ndarray | None, threshold: float, k: int | None = None) -> set[tuple[int, int]]:
    """The pairs, by sorting each row of the whole matrix."""
    full = cosines(x, x if y is None else y)
    if y is None:
        np.fill_diagonal(full, -2)
    above = full > np.float32(threshold)
    if k is not None:
        best = np.zeros_like(above)
        np.put_along_axis(best, np.argsort(-full, axis=1, kind="stable")[:, :k], True, axis=1)
        above &= best if y is not None else best | best.T
    pairs = {(int(i), int(j)) for i, j in zip(*np.nonzero(above), strict=True)}
    return pairs if y is not None else {(i, j) for i, j in pairs if i < j}


def as_set(pairs: SimilarPairs) -> set[tuple[int, int]]:
    return set(zip(pairs.i.tolist(), pairs.j.tolist(), strict=True))


def coarse(kind: torch.dtype, sample: np.ndarray) -> Product:
    if kind == torch.int8 and not multiplies_bytes():
        pytest.skip("this processor multiplies bytes wrongly, so int8 is never used on it")
    return {torch.float32: Product, torch.bfloat16: BFloat16Product, torch.int8: lambda: fit_int8_product(sample)}[
        kind
    ]()


def multiplies_bytes() -> bool:
    """Whether this processor multiplies bytes at the ends of their range exactly."""
    x = torch.full((2, 64), 127, dtype=torch.int8)
    return bool((torch._int_mm(x, x.T) == 64 * 127 * 127).all())


KINDS = [torch.float32, torch.bfloat16, torch.int8]


@pytest.fixture(params=[(16, KINDS[0]), (32, KINDS[1]), (16, KINDS[2]), *((None, kind) for kind in KINDS)], ids=str)
def every_bound(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int | None, torch.dtype]:
    """Make the search use this width and dtype, not the fastest of this machine, and small tiles."""
    width, kind = request.param

    def forced(x: np.ndarray, y: np.ndarray | None, threshold: float, memory_gib: float) -> CosineBound:
        both = x if y is None else np.concatenate([x, y])
        vectors = np.linalg.eigh(both.T.astype(np.float64) @ both)[1][:, ::-1]
        basis = None if width is None else vectors[:, :width].copy()
        return CosineBound(x.shape[1], basis, coarse(kind, head_and_tail_length(both[:50], basis)))

    monkeypatch.setattr(neighbors, "fit_bound", forced)
    monkeypatch.setattr(tiles, "SIDE", 100)
    return request.param


@pytest.mark.parametrize("threshold", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_all_pairs_and_no_others_are_found(
    every_bound: tuple[int | None, torch.dtype], decay: float, threshold: float
) -> None:
    x = features(600, decay=decay)
    pairs = near_pairs(x, threshold=threshold)
    expected = oracle(x, None, threshold)
    assert len(expected) > 10
    assert as_set(pairs) == expected
    assert (np.diff(pairs.i) >= 0).all()
    # both are float64 sums, rounded to float32
    assert pairs.similarity == pytest.approx(cosines(x, x)[pairs.i, pairs.j], abs=1e-7)


def test_pairs_between_two_sets(every_bound: tuple[int | None, torch.dtype]) -> None:
    x, y = features(300, seed=1), features(450, seed=2)
    y[::9] = x[:50]
    assert as_set(near_pairs(x, y, threshold=0.5)) == oracle(x, y, 0.5)
    assert as_set(near_pairs(x, y, threshold=0.5, k=3)) == oracle(x, y, 0.5, 3)


@pytest.mark.parametrize("k", [1, 5, 40])
def test_the_best_k_of_either_row_are_kept(every_bound: tuple[int | None, torch.dtype], k: int) -> None:
    x = features(500, decay=2.0)
    assert as_set(near_pairs(x, threshold=0.3, k=k)) == oracle(x, None, 0.3, k)


def test_the_pairs_are_those_of_faiss() -> None:
    x = features(1500, 128)
    index = faiss.IndexFlatIP(128)
    index.add(x)
    limits, similarity, j = index.range_search(x, 0.55)
    i = np.repeat(np.arange(len(x)), np.diff(limits.astype(np.int64)))
    clear = (i < j) & (np.abs(similarity - 0.55) > 1e-6)  # faiss sums in float32
    ours = as_set(near_pairs(x, threshold=0.55))
    assert set(zip(i[clear].tolist(), j[clear].tolist(), strict=True)) <= ours
    assert abs(len(ours) - int((i < j).sum())) <= int((np.abs(similarity - 0.55) <= 1e-6).sum())


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), decay=st.floats(0, 6), width=st.sampled_from([4, 15, None]))
def test_the_bound_is_never_below_the_cosine(kind: torch.dtype, seed: int, decay: float, width: int | None) -> None:
    """This holds for vectors unrelated to those that the basis and the step were fitted to."""
    rng = np.random.default_rng(seed)
    x, y = features(60, 32, decay, seed % 1000), features(40, 32, 0.0, seed % 999)
    basis = None if width is None else np.linalg.qr(rng.normal(size=(32, width)))[0]
    bound = CosineBound(32, basis, coarse(kind, head_and_tail_length(x[:10], basis)))
    short_x, short_y = bound.shorten(x), bound.shorten(y)
    out = torch.empty(60, 40, dtype=bound.product.result_dtype)
    bound.product.multiply(short_x.values, short_y.values, out)
    full, margin = x.astype(np.float64) @ y.T.astype(np.float64), bound.margin(short_x, short_y)
    assert (out.double().numpy() * bound.product.unit + margin >= full).all()
    above = np.empty(out.numel(), bool)
    for threshold in (-0.5, 0.0, 0.1, 0.6):
        bound.product.above(out.view(-1), threshold - margin, above)
        assert above.reshape(full.shape)[full > threshold].all()
        assert not above.reshape(full.shape)[out.double().numpy() * bound.product.unit < threshold - 2 * margin].any()


@pytest.mark.parametrize(("kind", "most"), list(zip(KINDS, [1e-4, 0.008, 0.04], strict=True)), ids=str)
def test_the_margin_is_small(kind: torch.dtype, most: float) -> None:
    """A bound with a large margin would be useless. One value of a row may be far larger than the others."""
    x = features(2000, 512, 1.5)
    bound = CosineBound(512, None, coarse(kind, x[:100]))
    short = bound.shorten(x)
    assert bound.margin(short, short) < most


def test_the_width_follows_the_spectrum_the_machine_and_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "measure_speedups", dict)
    monkeypatch.setattr(bounds, "measure_speedups", dict)
    steep, flat = features(3000, 256, 3.0), features(3000, 256, 0.0)
    assert fit_bound(steep, None, 0.98, 1.0).width < 40
    assert fit_bound(flat, None, 0.3, 1.0).is_cosine
    assert fit_bound(steep, None, 0.98, 1e-6).is_cosine  # no memory for shortened vectors
    for kind in KINDS[1:]:
        if kind == torch.bfloat16 or multiplies_bytes():
            for module in (products, bounds):
                monkeypatch.setattr(module, "measure_speedups", lambda kind=kind: {kind: 6.0})
            assert fit_bound(flat, None, 0.6, 1.0).product.dtype == kind


def test_a_product_is_used_only_where_it_is_correct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors without instructions for bytes compute wrong sums quickly."""
    monkeypatch.setattr(torch, "_int_mm", lambda x, y, out: out.zero_())
    measure_speedups.cache_clear()
    assert torch.int8 not in measure_speedups()
    monkeypatch.delattr(torch, "_int_mm")
    measure_speedups.cache_clear()
    assert torch.int8 not in measure_speedups()
    measure_speedups.cache_clear()


@pytest.mark.parametrize("k", [None, 4])
def test_parts_threads_and_memory_do_not_change_the_answer(k: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "SIDE", 64)
    x = features(900)
    whole = near_pairs(x, threshold=0.5, k=k, workers=1)
    parts = [near_pairs(x, threshold=0.5, k=k, part=(n, 3), workers=2, memory_gib=0.01 * (n + 1)) for n in range(3)]
    again = merge_pairs([from_table(part.table()) for part in reversed(parts)], k=k)
    for name in ("i", "j", "similarity"):
        assert (getattr(whole, name) == getattr(again, name)).all()
    assert sum(map(len, parts)) >= len(whole)
    assert min(map(len, parts)) > 0


def test_shards_against_shards_give_the_whole() -> None:
    x = features(600)
    cut = [x[:250], x[250:]]
    first, second = near_pairs(cut[0], threshold=0.5), near_pairs(cut[1], threshold=0.5)
    between = near_pairs(cut[0], cut[1], threshold=0.5)
    parts = [
        first,
        SimilarPairs(second.i + 250, second.j + 250, second.similarity),
        SimilarPairs(between.i, between.j + 250, between.similarity),
    ]
    assert as_set(merge_pairs(parts)) == oracle(x, None, 0.5)


def test_thousands_of_similar_frames_stay_within_the_memory() -> None:
    """All 4.5 million pairs are above the threshold; about 3,000 x 8 are wanted."""
    rng = np.random.default_rng(0)
    x = 1 + 0.05 * rng.normal(size=(3000, 64))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    tracemalloc.start()
    pairs = near_pairs(x, threshold=0.6, k=8, memory_gib=0.06, workers=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.06 * 2**30
    assert as_set(pairs) == oracle(x, None, 0.6, 8)
    with pytest.raises(DinomedError, match="raise the threshold, use a k"):
        near_pairs(x, threshold=0.6, memory_gib=0.06)


def test_a_mapped_read_only_file_is_searched(tmp_path: Path) -> None:
    x = features(400)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert as_set(near_pairs(mapped, threshold=0.5)) == oracle(x, None, 0.5)
    assert (top_k(mapped[:9], mapped, 3)[1] == top_k(x[:9], x, 3)[1]).all()


def test_one_vector_has_no_pairs_and_two_copies_have_one() -> None:
    vector = features(1)
    assert len(near_pairs(vector, threshold=0.5)) == 0
    pairs = near_pairs(np.concatenate([vector, vector]), threshold=0.5, k=1)
    assert (pairs.i.tolist(), pairs.j.tolist(), pairs.similarity.tolist()) == ([0], [1], [pytest.approx(1)])


def test_a_threshold_of_minus_one_gives_every_pair() -> None:
    assert len(near_pairs(features(50), threshold=-1.0)) == 50 * 49 // 2


@pytest.mark.parametrize("k", [1, 7, 120])
def test_the_nearest_are_those_of_a_full_sort(k: int) -> None:
    queries, x = features(33, seed=3), features(120, seed=4)
    similarity, index = top_k(queries, x, k)
    full = cosines(queries, x)
    assert (index == np.argsort(-full, axis=1, kind="stable")[:, :k]).all()
    assert (similarity == np.take_along_axis(full, index, 1)).all()


def test_of_equally_similar_rows_the_lower_number_comes_first() -> None:
    x = features(6)[[0, 1, 0, 2, 0, 1]]
    assert top_k(x[:1], x, 3)[1].tolist() == [[0, 2, 4]]


def test_wrong_input_is_named_in_the_message() -> None:
    x = features(20)
    broken = x.copy()
    broken[7, 3] = np.nan
    with pytest.raises(DinomedError, match="row 7 has nan or infinite values"):
        near_pairs(broken, threshold=0.5)
    with pytest.raises(DinomedError, match="second set: row 7"):
        near_pairs(x, broken, threshold=0.5)
    with pytest.raises(DinomedError, match="queries: row 7"):
        top_k(broken, x, 1)
    with pytest.raises(DinomedError, match="row 0 has length 2, not 1; normalise"):
        near_pairs(2 * x, threshold=0.5)
    with pytest.raises(DinomedError, match="not float64"):
        near_pairs(x.astype(np.float64), threshold=0.5)
    with pytest.raises(DinomedError, match="the array is empty"):
        near_pairs(x[:0], threshold=0.5)
    with pytest.raises(DinomedError, match="dimensions 64 and 32"):
        near_pairs(x, features(20, 32), threshold=0.5)
    with pytest.raises(DinomedError, match="not contiguous"):
        near_pairs(np.asfortranarray(x), threshold=0.5)
    for threshold in (1.5, -1.1, float("nan")):
        with pytest.raises(UsageError, match="give a cosine in"):
            near_pairs(x, threshold=threshold)
    for k in (0, 20):
        with pytest.raises(UsageError, match="there are 19 other vectors; give 1 to 19"):
            near_pairs(x, threshold=0.5, k=k)
    with pytest.raises(UsageError, match="k is 21, and there are 20"):
        top_k(x, x, 21)
    with pytest.raises(UsageError, match="part 2 of 2"):
        near_pairs(x, threshold=0.5, part=(2, 2))


def test_threads_give_results_in_order_and_pass_errors_on() -> None:
    assert list(in_threads(lambda n: n * n, range(50), 4)) == [n * n for n in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda n: 1 // n, [1, 0], 2))
