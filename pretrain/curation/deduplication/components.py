"""Connected components of a graph of pairs, from any number of pieces, and one member chosen from each."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from dinomed.errors import UsageError, did_you_mean

RULE = ("-labelled", "-area", "-sharpness", "path")
"""Who stays of several copies: labelled before unlabelled, then the largest, the sharpest, the first path."""


def components(count: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """The component of each of `count` rows, int64: the lowest row that is in it.

    >>> components(5, np.array([3, 4]), np.array([1, 3])).tolist()
    [0, 1, 2, 1, 1]
    """
    return connect(np.arange(count), i, j)


def connect(component: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """`component`, as of `components`, with more edges: edges can come in pieces, in any order.

    Args:
        component: int64 (N,); i, j: int64 (E,), rows.
    """
    ends = np.stack([component[i], component[j]])
    ends = ends[:, ends[0] != ends[1]]
    if not ends.size:
        return component.copy()
    # only what the edges touch is numbered: a piece costs what it holds, not what the whole pile holds
    nodes, number = np.unique(ends, return_inverse=True)
    first, second = number.reshape(ends.shape)
    # truth values: equal edges add up to one edge
    graph = coo_matrix((np.full(len(first), True), (first, second)), shape=(len(nodes), len(nodes)))
    _, group = connected_components(graph, directed=False)
    lowest = np.full(len(nodes), np.iinfo(np.int64).max)
    np.minimum.at(lowest, group, nodes)
    renamed = np.arange(len(component))
    renamed[nodes] = lowest[group]
    return renamed[component]


def merge_components(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The components of all edges, of several that were made of some of them (each over all N rows)."""
    merged = parts[0]
    for part in parts[1:]:
        linked = np.flatnonzero(part != np.arange(len(part)))
        merged = connect(merged, linked, part[linked])
    return merged


def order_by(columns: Mapping[str, np.ndarray | Sequence[object]], rule: Sequence[str] = RULE) -> np.ndarray:
    """The place of each row, int64 (N,), 0 the best.

    Args:
        columns: numbers, truth values or text, (N,) each; not-a-number and None are last whichever way.
        rule: names of columns, the most important first; ``-name`` is largest first. Rows that are equal in all keep
            their order.

    Raises:
        UsageError: a rule that names no column.
    """
    keys = []
    for key in rule:
        name = key.removeprefix("-")
        if name not in columns:
            raise UsageError(f"the rule for who stays names {name!r}{did_you_mean(name, columns)}")
        keys.append(_ascending(columns[name], reverse=key.startswith("-")))
    order = np.lexsort(keys[::-1])
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place


def _ascending(values: np.ndarray | Sequence[object], *, reverse: bool) -> np.ndarray:
    """Numbers that sort as the values do, missing ones last."""
    given = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in given):
        known = {value: place for place, value in enumerate(sorted({str(value) for value in given}))}
        values = [None if value is None else known[str(value)] for value in values]
    number = np.array([np.nan if value is None else value for value in values], np.float64)
    return np.where(np.isnan(number), np.inf, -number if reverse else number)


def representatives(component: np.ndarray, place: np.ndarray) -> np.ndarray:
    """For each row, int64 (N,), the row of its component with the lowest `place` (as of `order_by`)."""
    order = np.lexsort((place, component))
    first = np.concatenate([[True], component[order][1:] != component[order][:-1]]) if len(order) else np.empty(0, bool)
    best = np.empty(len(component), np.int64)
    best[component[order[first]]] = order[first]
    return best[component]
