"""Which vectors are similar, exactly and in bounded memory: all pairs above a threshold, and the k nearest."""

import numpy as np

from dinomed.errors import UsageError
from dinomed.features.neighbors import search_exactly
from dinomed.pretrain.curation.search.bound import fit_bound
from dinomed.pretrain.curation.search.pairs import PAIR_BYTES, SLACK, Collector, Pairs
from dinomed.pretrain.curation.search.tiles import TileSearch, in_threads, pairs_in_tile, processors, strips
from dinomed.pretrain.curation.search.vectors import (
    GIB,
    blocks,
    check_count,
    check_same_dimension,
    check_threshold,
    check_vectors,
    similarity_of,
)
from dinomed.progress import bar

MEMORY_GIB = 2.0


def near_pairs(
    x: np.ndarray,
    y: np.ndarray | None = None,
    *,
    threshold: float,
    k: int | None = None,
    memory_gib: float = MEMORY_GIB,
    part: tuple[int, int] = (0, 1),
    workers: int | None = None,
) -> Pairs:
    """All pairs with a cosine above `threshold`, within `x` (each once, i < j) or between `x` and `y`. None is missed.

    Args:
        x: float32 (N, D), rows of length 1, in memory or mapped; y: (M, D), or None for `x` itself.
        k: keep only the `k` best of a row: within one set of either of the two, between two sets of the row of `x`.
            The search for copies of the DINOv2 paper (appendix A) has k = 64.
        memory_gib: for what is held beside the vectors: shortened copies of them (at most half of it)
            and the pairs.
        part: (n, of): do only the nth of so many shares, counted from 0. `merge_pairs` puts them together.
        workers: threads; by default one for each processor that this process may use.

    Raises:
        UsageError: a threshold outside [-1, 1], a k larger than what there is, no such part.
        DinomedError: vectors that are not finite or not of length 1, of other dimensions, or too little memory.
    """
    same = y is None
    check_vectors(x)
    if y is not None:
        check_vectors(y, "vectors of the second set")
        check_same_dimension(x, y)
    threshold = check_threshold(threshold)
    columns = x if y is None else y
    if k is not None:
        check_count(k, len(columns) - same, "k", "other vectors" if same else "vectors of the second set")
    if not 0 <= part[0] < part[1]:
        raise UsageError(f"part {part[0]} of {part[1]}: parts are counted from 0")
    workers = workers or processors()
    bound = fit_bound(x, y, threshold, memory_gib / 2)
    heads_x = bound.heads(x)
    heads_y = heads_x if y is None else bound.heads(y)
    left = memory_gib - (len(x) + (0 if same else len(columns))) * bound.row_bytes / GIB
    collector = Collector(k, symmetric=same, memory_gib=left / 2)
    # the other half is for what the threads have found and the collector has not taken yet
    tiles = max(int(left / 2 * GIB / (workers + 1) / (pairs_in_tile(k) * PAIR_BYTES)), 1)
    search = TileSearch(x, columns, heads_x, heads_y, bound, threshold, collector)
    todo = strips(len(x), len(columns), same=same, part=part, tiles=tiles)
    # in millions of products: the strips differ in size
    with bar("near pairs", sum(strip.work for strip in todo) // 10**6) as progress:
        done = 0
        for strip, pairs in zip(todo, in_threads(search, todo, workers), strict=True):
            collector.add(pairs)
            done += strip.work
            progress.advance(done // 10**6 - progress.done)
    return collector.finish(x, columns, threshold)


def top_k(
    queries: np.ndarray, x: np.ndarray, k: int, *, memory_gib: float = MEMORY_GIB, description: str = "nearest"
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` most similar rows of `x` for each query, exactly, best first; of equals the lower number comes first.

    Args:
        queries: float32 (Q, D); x: float32 (N, D); rows of length 1, in memory or mapped.
        memory_gib: for what is held beside vectors and answers.

    Returns:
        Cosine float32 (Q, k) and rows of `x`, int64 (Q, k).

    Raises:
        UsageError: k larger than N.
        DinomedError: vectors that are not finite or not of length 1, or of other dimensions.
    """
    check_vectors(queries, "queries")
    check_vectors(x)
    check_same_dimension(queries, x)
    check_count(k, len(x), "k", "vectors")
    # near-equals at the end of the list: more are asked for, and their similarity is computed in one way
    wanted = min(k + SLACK, len(x))
    similarity, index = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    with bar(description, len(queries)) as progress:
        for rows in blocks(len(queries), wanted * 64, min(memory_gib * GIB / 4, 2**28)):
            _, found = search_exactly(queries[rows], x, wanted)
            similarity[rows], index[rows] = rank(queries[rows], x, found, k)
            progress.advance(rows.stop - rows.start)
    return similarity, index


def rank(queries: np.ndarray, x: np.ndarray, found: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidates (Q, n) to the best `k` by their cosine in full, then by number. -1 is nothing: it comes last."""
    who = np.repeat(np.arange(len(found)), found.shape[1])
    exact = similarity_of(queries, x, who, np.maximum(found.ravel(), 0)).reshape(found.shape)
    exact = np.where(found < 0, np.float32(-np.inf), exact)
    order = np.lexsort((found, -exact))[:, :k]
    return np.take_along_axis(exact, order, 1), np.take_along_axis(found, order, 1)
