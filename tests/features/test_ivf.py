"""Inverted files against those that faiss trains by itself."""

import faiss
import numpy as np
import pytest

from dinomed.features.ivf import choose_num_lists, empty_inverted_file, train_centroids


def test_the_number_of_lists_grows_with_the_square_root() -> None:
    assert choose_num_lists(10, 39) == 1
    assert choose_num_lists(100_000, 39) == 1264
    assert choose_num_lists(390, 39) == 10


@pytest.mark.parametrize("codec", ["Flat", "SQ8", "PQ4np"])
def test_the_answers_are_those_of_an_index_that_faiss_trains(codec: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 16))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    expected = faiss.index_factory(16, f"IVF8,{codec}", faiss.METRIC_INNER_PRODUCT)
    expected.cp.seed = 3
    if codec.startswith("PQ"):
        expected.pq.cp.seed = 3
    expected.train(x[::2].copy())
    sample = x[::2].copy()
    index = empty_inverted_file(train_centroids(sample, 8, iterations=10, seed=3), codec, sample=sample, seed=3)
    for each in (expected, index):
        each.add(x)
        each.nprobe = 3
    for ours, theirs in zip(index.search(x[:50], 7), expected.search(x[:50], 7), strict=True):
        assert np.array_equal(ours, theirs)
