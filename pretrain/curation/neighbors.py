"""Which pairs of vectors are similar: exactly, by products of tiles, in bounded memory.

Legend: i, j are rows of the first and the second set; t is the threshold on the cosine.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import faiss
import numpy as np
import torch

from dinomed.errors import UsageError
from dinomed.pretrain.curation.bound import Bound, fit_bound, one_thread_each
from dinomed.pretrain.curation.pairs import Collector, Pairs
from dinomed.pretrain.curation.vectors import (
    GIB,
    as_tensor,
    blocks,
    check_count,
    check_same_dimension,
    check_threshold,
    check_vectors,
    similarity_of,
)
from dinomed.progress import bar

T = TypeVar("T")
R = TypeVar("R")
# 4 MiB of products: they are looked at while they are still in the cache
TILE_ROWS, TILE_COLUMNS = 1024, 1024
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
    bound = fit_bound(x, y, threshold, memory_gib / 2)
    heads_x = bound.heads(x)
    heads_y = heads_x if y is None else bound.heads(y)
    held = (len(x) + (0 if same else len(columns))) * bound.row_bytes / GIB
    collector = Collector(k, symmetric=same, memory_gib=memory_gib - held)

    def search(stripe: slice) -> list[Pairs]:
        return _search_stripe(x, columns, heads_x, heads_y, bound, stripe, threshold, k, same)

    stripes = [slice(start, min(start + TILE_ROWS, len(x))) for start in range(0, len(x), TILE_ROWS)][
        part[0] :: part[1]
    ]
    with bar("near pairs", sum(_work(stripe, len(columns), same) for stripe in stripes)) as progress:
        for stripe, found in zip(stripes, in_threads(search, stripes, workers), strict=True):
            for pairs in found:
                collector.add(pairs)
            progress.advance(_work(stripe, len(columns), same))
    return collector.finish(x, columns, threshold)


def _work(stripe: slice, columns: int, same: bool) -> int:
    """Rows times columns, in thousands, that a stripe stands for."""
    return (stripe.stop - stripe.start) * (columns - (stripe.start if same else 0)) // 1000


def _search_stripe(
    x: np.ndarray,
    y: np.ndarray,
    heads_x: torch.Tensor,
    heads_y: torch.Tensor,
    bound: Bound,
    stripe: slice,
    threshold: float,
    k: int | None,
    same: bool,
) -> list[Pairs]:
    """The candidates of the rows of one stripe, tile by tile; within one set only right of the diagonal."""
    rows = stripe.stop - stripe.start
    cosine = Bound(bound.dimension)
    limit = threshold - cosine.margin
    left, product = heads_x[stripe], torch.empty(rows * TILE_COLUMNS, dtype=heads_x.dtype)
    above = np.empty(rows * TILE_COLUMNS, bool)
    found = []
    for start in range(stripe.start if same else 0, len(y), TILE_COLUMNS):
        stop = min(start + TILE_COLUMNS, len(y))
        size = rows * (stop - start)
        tile = product[:size].view(rows, stop - start)
        torch.mm(left, heads_y[start:stop].T, out=tile)
        flat = _surviving(product[:size], threshold - bound.margin, above[:size])
        if not len(flat):
            continue
        if bound.is_cosine or len(flat) * bound.pair_cost > size * bound.dimension:
            whole = tile if bound.is_cosine else as_tensor(x[stripe]) @ as_tensor(y[start:stop]).T
            flat = _best_of_tile(whole.numpy(), limit, k, same)
            i, j = np.divmod(flat, stop - start)
            similarity = whole.numpy().ravel()[flat]
        else:
            i, j = np.divmod(flat, stop - start)
            similarity = similarity_of(x[stripe], y[start:stop], i, j, precise=False)
        keep = similarity > limit
        if same and start < stripe.stop:
            keep &= i + stripe.start < j + start
        found.append(Pairs(i[keep] + stripe.start, j[keep] + start, similarity[keep]))
    return found


def _surviving(products: torch.Tensor, limit: float, above: np.ndarray) -> np.ndarray:
    """Where the products are above the limit. bfloat16 is compared by its bits: NumPy has no such type, and above zero
    they are in the order of integers."""
    if products.dtype == torch.bfloat16:
        bits = torch.tensor(limit).to(torch.bfloat16).view(torch.int16).item()
        np.greater_equal(products.view(torch.int16).numpy(), np.int16(bits), out=above)
    else:
        np.greater(products.numpy(), np.float32(limit), out=above)
    return np.flatnonzero(above)


def _best_of_tile(tile: np.ndarray, limit: float, k: int | None, same: bool) -> np.ndarray:
    """Where in a tile (flat) the product is above the limit; with `k`, and in one set, only what may be among the k of
    its row or of its column: a tile of a thousand frames of one video would otherwise be a million pairs."""
    above = tile > np.float32(limit)
    if k is not None and int(above.sum()) > 4 * k * sum(tile.shape):
        wanted = k + Collector.SLACK + 1  # one for the row itself
        least = np.full(tile.shape, np.inf, np.float32)
        if wanted < tile.shape[1]:
            least = np.minimum(least, np.partition(tile, -wanted, axis=1)[:, -wanted, None])
        if same and wanted < tile.shape[0]:
            least = np.minimum(least, np.partition(tile, -wanted, axis=0)[None, -wanted])
        if np.isfinite(least).all():
            above &= tile >= least
    return np.flatnonzero(above)


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
    wanted = min(k + Collector.SLACK, len(x))
    similarity, index = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    with bar(description, len(queries)) as progress:
        for rows in blocks(len(queries), wanted * 64, min(memory_gib * GIB / 4, 2**28)):
            _, found = faiss.knn(queries[rows], x, wanted, metric=faiss.METRIC_INNER_PRODUCT)
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


def in_threads(work: Callable[[T], R], items: Iterable[T], workers: int | None = None) -> Iterator[R]:
    """`work` on each item, in the order given, in threads; products inside take one thread each."""
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with one_thread_each(), ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
