"""Exact search in one tile of the similarity matrix at a time: first the bound, then the cosine of what it leaves."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from dinomed.io.prefetch import prefetch
from dinomed.pretrain.curation.search.bound import CosineBound, ShortVectors
from dinomed.pretrain.curation.search.low_precision import rounding_error, single_threaded_torch
from dinomed.pretrain.curation.search.pairs import SLACK, PairCollector, SimilarPairs, concatenated
from dinomed.pretrain.curation.search.vectors import as_tensor, similarity_of

T = TypeVar("T")
R = TypeVar("R")
SIDE = 1024  # rows and columns of a tile: its products take 2 to 4 MiB, which stay in the processor's cache


@dataclass(frozen=True)
class TileStrip:
    """A row of tiles: up to `SIDE` rows and a range of columns. Within one set, the columns start at the rows."""

    rows: slice
    columns: slice

    @property
    def num_products(self) -> int:
        return (self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start)


def tile_strips(rows: int, columns: int, *, same: bool, part: tuple[int, int], max_tiles: int) -> list[TileStrip]:
    """Divide one part of the similarity matrix into strips.

    Args:
        rows: rows of the matrix; columns: its columns.
        same: both are the same set: only the tiles on and above the diagonal are needed.
        part: (n, of): every `of`-th row of tiles, from the n-th on.
        max_tiles: most tiles of a strip.
    """
    strips = []
    for top in range(part[0] * SIDE, rows, part[1] * SIDE):
        for left in range(top if same else 0, columns, max_tiles * SIDE):
            right = min(left + max_tiles * SIDE, columns)
            strips.append(TileStrip(slice(top, min(top + SIDE, rows)), slice(left, right)))
    return strips


def max_pairs_in_tile(k: int | None) -> int:
    """Return the most pairs that `TileSearch` returns for one tile."""
    return SIDE * SIDE if k is None else min(SIDE * SIDE, 2 * SIDE * (k + SLACK + 1))


@dataclass(frozen=True)
class TileSearch:
    """Search for the candidate pairs of a strip. May be called from several threads.

    Attributes:
        x: float32 (N, D), rows of length 1.
        y: float32 (M, D); `x` itself for pairs within one set.
        short_x: `x` shortened by `bound`; short_y: `y` shortened.
        collector: says how many pairs of a row are wanted (`k`), and which pairs cannot be among them any more.
    """

    x: np.ndarray
    y: np.ndarray
    short_x: ShortVectors
    short_y: ShortVectors
    bound: CosineBound
    threshold: float
    collector: PairCollector

    def __call__(self, strip: TileStrip) -> SimilarPairs:
        """Return the pairs whose cosine, computed in float32, may be above the threshold."""
        product, height = self.bound.product, strip.rows.stop - strip.rows.start
        products, above = torch.empty(height * SIDE, dtype=product.result_dtype), np.empty(height * SIDE, bool)
        limit = self.threshold - self.bound.margin(self.short_x, self.short_y)
        short_rows = self.short_x.values[strip.rows]
        parts = []
        for start in range(strip.columns.start, strip.columns.stop, SIDE):
            columns = slice(start, min(start + SIDE, strip.columns.stop))
            size = height * (columns.stop - columns.start)
            tile = products[:size].view(height, -1)
            product.multiply(short_rows, self.short_y.values[columns], tile)
            product.above(products[:size], limit, above[:size])
            survivors = np.flatnonzero(above[:size])
            if len(survivors):
                parts.append(self._check_survivors(strip.rows, columns, tile, survivors))
        return concatenated(parts)

    def _check_survivors(self, rows: slice, columns: slice, tile: torch.Tensor, survivors: np.ndarray) -> SimilarPairs:
        """Compute the cosine of each surviving pair or, where that is less work, of the whole tile.

        Args:
            tile: products of the bound; survivors: int64, flat positions in it.
        """
        x, y = self.x[rows], self.y[columns]
        lowest = self.threshold - rounding_error(self.bound.dimension)
        if not self.bound.is_cosine and len(survivors) * self.bound.pair_cost < tile.numel() * self.bound.dimension:
            i, j = np.divmod(survivors, len(y))
            similarity = similarity_of(x, y, i, j, precise=False)
        else:
            cosines = (tile if self.bound.is_cosine else as_tensor(x) @ as_tensor(y).T).numpy()
            i, j = np.divmod(self._best_of_tile(cosines, lowest, rows, columns), len(y))
            similarity = cosines[i, j]
        pairs = SimilarPairs(i + rows.start, j + columns.start, similarity)
        keep = (similarity > lowest) & (similarity >= self.collector.lowest_useful(pairs.i, pairs.j))
        if self.collector.symmetric and columns.start < rows.stop:
            keep &= pairs.i < pairs.j
        return pairs.take(keep)

    def _best_of_tile(self, cosines: np.ndarray, lowest: float, rows: slice, columns: slice) -> np.ndarray:
        """Return the flat positions of the cosines above `lowest`.

        Where nearly all are above it, as for frames of one video, return only those that may be among the k best of
        their row or, within one set, of their column.
        """
        above = cosines > np.float32(lowest)
        k, limit = self.collector.k, max_pairs_in_tile(self.collector.k)
        if k is not None and np.count_nonzero(above) > limit:
            i, j = np.arange(rows.start, rows.stop)[:, None], np.arange(columns.start, columns.stop)[None]
            above &= cosines >= self.collector.lowest_useful(i, j)
        if k is not None and np.count_nonzero(above) > limit:
            num_wanted = k + SLACK + 1  # one more for the row itself
            kth_best = np.full(cosines.shape, np.inf, np.float32)
            if num_wanted < cosines.shape[1]:
                kth_best = np.minimum(kth_best, np.partition(cosines, -num_wanted, axis=1)[:, -num_wanted, None])
            if self.collector.symmetric and num_wanted < cosines.shape[0]:
                kth_best = np.minimum(kth_best, np.partition(cosines, -num_wanted, axis=0)[None, -num_wanted])
            above &= cosines >= np.where(np.isfinite(kth_best), kth_best, -np.inf)
        return np.flatnonzero(above)


def in_threads(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield `work` of each item, in the order of the items.

    The threads are at most one item ahead of the caller. torch's products in them use one thread each.
    """
    with single_threaded_torch():
        yield from prefetch(work, items, workers, ahead=0)
