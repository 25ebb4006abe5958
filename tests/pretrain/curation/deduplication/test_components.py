"""Connected components against a disjoint set of a few lines, and the choice of representatives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinomed.errors import UsageError
from dinomed.pretrain.curation.deduplication.components import components, connect, order_by, representatives

EDGES = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40)


def oracle(count: int, edges: list[tuple[int, int]]) -> list[int]:
    parent = list(range(count))

    def root(row: int) -> int:
        while parent[row] != row:
            row = parent[row]
        return row

    for i, j in edges:
        low, high = sorted((root(i), root(j)))
        parent[high] = low
    return [root(row) for row in range(count)]


def ends(edges: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    i, j = np.array(edges, np.int64).reshape(-1, 2).T
    return i, j


@given(EDGES)
def test_components_are_those_of_a_disjoint_set(edges: list[tuple[int, int]]) -> None:
    assert components(30, *ends(edges)).tolist() == oracle(30, edges)


@given(EDGES, st.integers(0, 40), st.integers(0, 40))
def test_edges_may_be_added_in_pieces(edges: list[tuple[int, int]], a: int, b: int) -> None:
    a, b = sorted((a, b))
    pieces = [ends(edges[:a]), ends(edges[a:b]), ends(edges[b:])]
    component = np.arange(30)
    for piece in pieces:
        component = connect(component, *piece)
    assert component.tolist() == oracle(30, edges)


def test_a_long_chain_is_one_component() -> None:
    rows = np.arange(100_000)
    order = np.random.default_rng(0).permutation(len(rows) - 1)
    assert not components(len(rows), rows[:-1][order], rows[1:][order]).any()


@pytest.mark.parametrize("times", [2, 256, 70_000])
def test_an_edge_may_be_repeated(times: int) -> None:
    """A sum of this many ones in a byte would be zero."""
    assert components(3, np.full(times, 1), np.full(times, 2)).tolist() == [0, 1, 1]


def test_labelled_then_largest_then_sharpest_then_path() -> None:
    columns = {
        "labelled": [False, False, True, True, True, True],
        "area": [900, 900, 100, 200, 200, None],
        "sharpness": [np.nan, 0.1, 5.0, 1.0, 2.0, 9.0],
        "path": ["a", "b", "c", "d", "e", "f"],
    }
    assert np.argsort(order_by(columns)).tolist() == [4, 3, 2, 5, 1, 0]
    columns["sharpness"] = [1.0] * 6
    assert np.argsort(order_by(columns)).tolist() == [3, 4, 2, 5, 0, 1]


def test_missing_text_is_last_and_equal_rows_keep_their_order() -> None:
    assert np.argsort(order_by({"site": ["b", None, "a", "b"]}, ["site"])).tolist() == [2, 0, 3, 1]
    assert np.argsort(order_by({"site": ["b", None, "a", "b"]}, ["-site"])).tolist() == [0, 3, 2, 1]


def test_an_unknown_column_in_the_rule_is_named() -> None:
    with pytest.raises(UsageError, match="names 'sharpnes', which is not a column; did you mean 'sharpness'"):
        order_by({"sharpness": [1.0]}, ["-sharpnes"])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.randoms())
def test_the_representative_is_the_best_row_of_a_component(labels: list[int], random: object) -> None:
    component = np.array([labels.index(label) for label in labels])
    rank = list(range(len(labels)))
    random.shuffle(rank)  # type: ignore[attr-defined]
    best = representatives(component, np.array(rank))
    for row, chosen in enumerate(best):
        members = np.flatnonzero(component == component[row])
        assert chosen == min(members, key=lambda member: rank[member])
