"""Connected components of a graph of pairs, and the choice of one representative image of each component."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from dinomed.errors import UsageError, did_you_mean
from dinomed.pretrain.curation.deduplication.config import RULE


def components(count: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Compute the component of each of `count` rows: int64 (count,), the lowest row of the component.

    >>> components(5, np.array([3, 4]), np.array([1, 3])).tolist()
    [0, 1, 2, 1, 1]
    """
    return connect(np.arange(count), i, j)


def connect(component: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Merge components that new edges connect. Edges may be added in several calls, in any order.

    Args:
        component: int64 (N,), as `components` returns them.
        i: int64 (E,), first row of each edge.
        j: int64 (E,), second row of each edge.
    """
    ends = np.stack([component[i], component[j]])
    ends = ends[:, ends[0] != ends[1]]
    if not ends.size:
        return component.copy()
    # the graph has only the nodes of the edges, so the cost depends on the number of edges and not of rows
    nodes, number = np.unique(ends, return_inverse=True)
    first, second = number.reshape(ends.shape)
    # coo_matrix adds duplicate edges; with bool values the result is still one edge
    graph = coo_matrix((np.full(len(first), True), (first, second)), shape=(len(nodes), len(nodes)))
    _, label = connected_components(graph, directed=False)
    lowest = np.full(len(nodes), np.iinfo(np.int64).max)
    np.minimum.at(lowest, label, nodes)
    renamed = np.arange(len(component))
    renamed[nodes] = lowest[label]
    return renamed[component]


def order_by(columns: Mapping[str, np.ndarray | Sequence[object]], rule: Sequence[str] = RULE) -> np.ndarray:
    """Rank rows by several columns: int64 (N,); the row with rank 0 is preferred.

    Args:
        columns: numbers, bool or text, (N,) each. nan and None come last in both directions.
        rule: names of columns, the most important first; ``-name`` sorts from the largest value. Rows that are equal in
            all columns keep their order.

    Raises:
        UsageError: the rule names an unknown column.
    """
    keys = []
    for key in rule:
        name = key.removeprefix("-")
        if name not in columns:
            raise UsageError(f"duplicates.rule names {name!r}, which is not a column{did_you_mean(name, columns)}")
        keys.append(_sort_key(columns[name], reverse=key.startswith("-")))
    order = np.lexsort(keys[::-1])
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _sort_key(values: np.ndarray | Sequence[object], *, reverse: bool) -> np.ndarray:
    """Return numbers that sort as the values do, with missing values last."""
    present = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in present):
        numbers = {value: number for number, value in enumerate(sorted({str(value) for value in present}))}
        values = [None if value is None else numbers[str(value)] for value in values]
    key = np.array([np.nan if value is None else value for value in values], np.float64)
    return np.where(np.isnan(key), np.inf, -key if reverse else key)


def representatives(component: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Return for each row, int64 (N,), the row of its component with the lowest `rank` (see `order_by`)."""
    order = np.lexsort((rank, component))
    is_first = np.ones(len(order), bool)
    is_first[1:] = component[order][1:] != component[order][:-1]
    best = np.empty(len(component), np.int64)
    best[component[order[is_first]]] = order[is_first]
    return best[component]
