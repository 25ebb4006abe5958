"""The exact search, tile by tile: the bound first, then the cosine of what survives it."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from dinomed.pretrain.curation.search.bound import Bound, Heads
from dinomed.pretrain.curation.search.low_precision import one_thread_each, rounding
from dinomed.pretrain.curation.search.pairs import SLACK, Collector, Pairs, concatenated
from dinomed.pretrain.curation.search.vectors import as_tensor, similarity_of

T = TypeVar("T")
R = TypeVar("R")
SIDE = 1024  # rows and columns of a tile: two to four MiB of products, looked at while they are in the cache


@dataclass(frozen=True)
class Strip:
    """A row of tiles: up to `SIDE` rows, and some columns. Within one set, the columns begin at the rows."""

    rows: slice
    columns: slice

    @property
    def work(self) -> int:
        """Products in it."""
        return (self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start)


def strips(rows: int, columns: int, *, same: bool, part: tuple[int, int], tiles: int) -> list[Strip]:
    """The strips of one share of the work, none longer than so many tiles."""
    found = []
    for top in range(part[0] * SIDE, rows, part[1] * SIDE):
        for left in range(top if same else 0, columns, tiles * SIDE):
            right = min(left + tiles * SIDE, columns)
            found.append(Strip(slice(top, min(top + SIDE, rows)), slice(left, right)))
    return found


def pairs_in_tile(k: int | None) -> int:
    """The most pairs that `TileSearch` returns of one tile."""
    return SIDE * SIDE if k is None else min(SIDE * SIDE, 2 * SIDE * (k + SLACK + 1))


@dataclass(frozen=True)
class TileSearch:
    """Finds the candidates of a strip; may be called from several threads."""

    x: np.ndarray
    y: np.ndarray  # `x` itself, if within one set
    heads_x: Heads
    heads_y: Heads
    bound: Bound
    threshold: float
    collector: Collector  # for its `k`, and for what can no longer be among the k

    def __call__(self, strip: Strip) -> Pairs:
        """Pairs whose similarity, in single precision, may be above the threshold."""
        result, height = self.bound.product.result, strip.rows.stop - strip.rows.start
        products, above = torch.empty(height * SIDE, dtype=result), np.empty(height * SIDE, bool)
        limit = self.threshold - self.bound.margin(self.heads_x, self.heads_y)
        left = self.heads_x.values[strip.rows]
        found = []
        for start in range(strip.columns.start, strip.columns.stop, SIDE):
            columns = slice(start, min(start + SIDE, strip.columns.stop))
            size = height * (columns.stop - columns.start)
            tile = products[:size].view(height, -1)
            self.bound.product.multiply(left, self.heads_y.values[columns], tile)
            self.bound.product.above(products[:size], limit, above[:size])
            flat = np.flatnonzero(above[:size])
            if len(flat):
                found.append(self._check(strip.rows, columns, tile, flat))
        return concatenated(found)

    def _check(self, rows: slice, columns: slice, tile: torch.Tensor, flat: np.ndarray) -> Pairs:
        """The cosine of what survived: of each pair or, where that is less work, of the whole tile."""
        x, y = self.x[rows], self.y[columns]
        least = self.threshold - rounding(self.bound.dimension)
        if not self.bound.is_cosine and len(flat) * self.bound.pair_cost < tile.numel() * self.bound.dimension:
            i, j = np.divmod(flat, len(y))
            similarity = similarity_of(x, y, i, j, precise=False)
        else:
            whole = (tile if self.bound.is_cosine else as_tensor(x) @ as_tensor(y).T).numpy()
            i, j = np.divmod(self._best(whole, least, rows, columns), len(y))
            similarity = whole[i, j]
        pairs = Pairs(i + rows.start, j + columns.start, similarity)
        keep = (similarity > least) & (similarity >= self.collector.needed(pairs.i, pairs.j))
        if self.collector.symmetric and columns.start < rows.stop:
            keep &= pairs.i < pairs.j
        return pairs.take(keep)

    def _best(self, whole: np.ndarray, least: float, rows: slice, columns: slice) -> np.ndarray:
        """Where in a tile (flat) the cosine is above `least`; where that is nearly everywhere, as it is for frames of
        one video, only what may be among the k of its row or, within one set, of its column."""
        above = whole > np.float32(least)
        k, most = self.collector.k, pairs_in_tile(self.collector.k)
        if k is not None and np.count_nonzero(above) > most:
            i, j = np.arange(rows.start, rows.stop)[:, None], np.arange(columns.start, columns.stop)[None]
            above &= whole >= self.collector.needed(i, j)
        if k is not None and np.count_nonzero(above) > most:
            wanted = k + SLACK + 1  # one for the row itself
            worst = np.full(whole.shape, np.inf, np.float32)
            if wanted < whole.shape[1]:
                worst = np.minimum(worst, np.partition(whole, -wanted, axis=1)[:, -wanted, None])
            if self.collector.symmetric and wanted < whole.shape[0]:
                worst = np.minimum(worst, np.partition(whole, -wanted, axis=0)[None, -wanted])
            above &= whole >= np.where(np.isfinite(worst), worst, -np.inf)
        return np.flatnonzero(above)


def processors() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`work` on each item, in the order given, in threads that are at most one item ahead; torch's products inside take
    one thread each."""
    with one_thread_each(), ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
