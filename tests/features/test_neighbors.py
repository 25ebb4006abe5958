"""Exact neighbours against a sort, and inputs for which faiss raises no error."""

import numpy as np
import pytest

from dinomed.errors import DinomedError
from dinomed.features.neighbors import nearest, normalised


def test_neighbours_equal_those_of_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(50, 8)), rng.normal(size=(7, 8))
    similarities, indices = nearest(queries, vectors, 5)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, vectors))
    expected = np.argsort(-(a @ b.T), axis=1)[:, :5]
    assert (indices == expected).all()
    # float32 products of unit vectors with 8 entries
    assert similarities == pytest.approx(np.take_along_axis(a @ b.T, expected, 1), abs=1e-6)


def test_k_is_at_most_the_number_of_vectors() -> None:
    vectors = np.eye(3, dtype=np.float32)
    similarities, indices = nearest(vectors, vectors, 200)
    assert indices.shape == similarities.shape == (3, 3)
    assert sorted(indices[0].tolist()) == [0, 1, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    vectors = np.eye(4, dtype=np.float32)
    broken = vectors.copy()
    broken[2, 1] = bad
    with pytest.raises(DinomedError, match="query 2"):
        nearest(broken, vectors, 1)
    with pytest.raises(DinomedError, match="vector 2"):
        nearest(vectors, broken, 1)


def test_other_dimensions_and_an_empty_index_are_refused() -> None:
    vectors = np.eye(4, dtype=np.float32)
    with pytest.raises(DinomedError, match="3 values against an index of 4"):
        nearest(np.ones((1, 3), np.float32), vectors, 1)
    with pytest.raises(DinomedError, match="at least 1"):
        nearest(vectors, vectors[:0], 1)


def test_a_row_of_zeros_stays_zero() -> None:
    assert normalised(np.zeros((1, 4))).tolist() == [[0, 0, 0, 0]]
