"""Exact search among unit vectors in bounded memory: all pairs above a threshold, and the k nearest rows."""

import numpy as np

from dinomed.features.neighbors import search_exactly
from dinomed.pretrain.curation.runtime.executor import count_processors
from dinomed.pretrain.curation.search.bound import fit_bound
from dinomed.pretrain.curation.search.pairs import PAIR_BYTES, SLACK, PairCollector, SimilarPairs
from dinomed.pretrain.curation.search.tiles import (
    TileSearch,
    in_threads,
    max_pairs_in_tile,
    tile_strips,
)
from dinomed.pretrain.curation.search.vectors import (
    GIB,
    blocks,
    check_count,
    check_part,
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
) -> SimilarPairs:
    """Find all pairs with a cosine above `threshold`. No pair is missed.

    Args:
        x: float32 (N, D), rows of length 1, in memory or mapped.
        y: float32 (M, D), for pairs between `x` and `y`; None: pairs within `x`, each once with i < j.
        k: keep only the `k` most similar pairs of each row; within one set a pair is kept if it is among the k best of
            either of its rows, between two sets if it is among the k best of the row of `x`. The search for copies of
            the DINOv2 paper (appendix A) has k = 64.
        memory_gib: limit for what is held besides the vectors: their shortened copies (at most half of it) and the
            pairs.
        part: (n, of): do only the n-th of `of` parts, counted from 0. `merge_pairs` joins the results.
        workers: threads; by default one for each processor that this process may use.

    Raises:
        UsageError: a threshold outside [-1, 1], a k above the number of possible partners, or no such part.
        DinomedError: vectors that are not finite or not of length 1, different dimensions, or too little memory.
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
    check_part(part)
    workers = workers or count_processors()
    bound = fit_bound(x, y, threshold, memory_gib / 2)
    short_x = bound.shorten(x)
    short_y = short_x if y is None else bound.shorten(y)
    remaining_gib = memory_gib - (len(x) + (0 if same else len(columns))) * bound.row_bytes / GIB
    collector = PairCollector(k, symmetric=same, memory_gib=remaining_gib / 2)
    # the other half is for pairs that the threads have found and the collector does not hold yet
    tile_bytes = max_pairs_in_tile(k) * PAIR_BYTES
    max_tiles = max(int(remaining_gib / 2 * GIB / (workers + 1) / tile_bytes), 1)
    search = TileSearch(x, columns, short_x, short_y, bound, threshold, collector)
    strips = tile_strips(len(x), len(columns), same=same, part=part, max_tiles=max_tiles)
    # the progress counts millions of products, because the strips differ in size
    with bar("near pairs", sum(strip.num_products for strip in strips) // 10**6) as progress:
        done = 0
        for strip, pairs in zip(strips, in_threads(search, strips, workers), strict=True):
            collector.add(pairs)
            done += strip.num_products
            progress.advance(done // 10**6 - progress.done)
    return collector.finish(x, columns, threshold)


def top_k(
    queries: np.ndarray, x: np.ndarray, k: int, *, memory_gib: float = MEMORY_GIB, description: str = "nearest"
) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` most similar rows of `x` for each query, exactly.

    Args:
        queries: float32 (Q, D); x: float32 (N, D); rows of length 1, in memory or mapped.
        memory_gib: limit for what is held besides vectors and answers.
        description: label of the progress bar.

    Returns:
        Cosines float32 (Q, k), best first, and rows of `x`, int64 (Q, k). Of equally similar rows the lower number
        comes first.

    Raises:
        UsageError: k above N.
        DinomedError: vectors that are not finite or not of length 1, or different dimensions.
    """
    check_vectors(queries, "queries")
    check_vectors(x)
    check_same_dimension(queries, x)
    check_count(k, len(x), "k", "vectors")
    # faiss ranks by cosines in float32. A few more candidates are fetched and ranked again, so that its rounding does
    # not decide between near-equals at the end of the list.
    num_candidates = min(k + SLACK, len(x))
    similarity, index = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    with bar(description, len(queries)) as progress:
        for rows in blocks(len(queries), num_candidates * 64, min(memory_gib * GIB / 4, 2**28)):
            _, candidates = search_exactly(queries[rows], x, num_candidates)
            similarity[rows], index[rows] = rank_candidates(queries[rows], x, candidates, k)
            progress.advance(rows.stop - rows.start)
    return similarity, index


def rank_candidates(
    queries: np.ndarray, x: np.ndarray, candidates: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the `k` best candidates of each query by their cosine, summed in float64, then by their number.

    Args:
        candidates: int64 (Q, n), rows of `x`; -1 for no candidate, which is ranked last with a cosine of -inf.

    Returns:
        Cosines float32 (Q, k) and rows int64 (Q, k).
    """
    query = np.repeat(np.arange(len(candidates)), candidates.shape[1])
    cosine = similarity_of(queries, x, query, np.maximum(candidates.ravel(), 0)).reshape(candidates.shape)
    cosine = np.where(candidates < 0, np.float32(-np.inf), cosine)
    order = np.lexsort((candidates, -cosine))[:, :k]
    return np.take_along_axis(cosine, order, 1), np.take_along_axis(candidates, order, 1)
