"""Pairs of similar rows: the table of a search result, merging of parts, and the best pairs of each row."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dinomed.errors import DinomedError
from dinomed.pretrain.curation.search.vectors import GIB, similarity_of

# bytes of a stored pair (two copies exist while parts are joined), and of the ranking of one pair at its peak
PAIR_BYTES, RANK_BYTES = 40, 110
FIRST_COMPACTION = 1_000_000  # pairs
SLACK = 8  # pairs kept of a row beyond k until the end, so that rounding does not decide which near-equals are kept
_COLUMNS = {"i": np.int64, "j": np.int64, "similarity": np.float32}


@dataclass(frozen=True)
class SimilarPairs:
    """Row `i[n]` of a first set, row `j[n]` of a second set (within one set i < j), and their cosine; arrays of (P,).

    The pairs of a search result are sorted by (i, j).
    """

    i: np.ndarray  # int64
    j: np.ndarray  # int64
    similarity: np.ndarray  # float32

    def __len__(self) -> int:
        return len(self.i)

    def take(self, chosen: np.ndarray) -> "SimilarPairs":
        """Return the pairs at the given positions, or where a mask is true."""
        return SimilarPairs(self.i[chosen], self.j[chosen], self.similarity[chosen])

    def sorted(self) -> "SimilarPairs":
        return self.take(np.lexsort((self.j, self.i)))

    def table(self) -> pa.Table:
        """Return the pairs as an Arrow table with the columns `i`, `j`, `similarity`."""
        return pa.table({name: pa.array(getattr(self, name)) for name in _COLUMNS})


def from_table(table: pa.Table) -> SimilarPairs:
    """Read the pairs of a table that `SimilarPairs.table` made."""
    return SimilarPairs(*(table[name].to_numpy().astype(dtype, copy=False) for name, dtype in _COLUMNS.items()))


def no_pairs() -> SimilarPairs:
    return SimilarPairs(*(np.empty(0, dtype) for dtype in _COLUMNS.values()))


def merge_pairs(parts: Sequence[SimilarPairs], *, k: int | None = None, symmetric: bool = True) -> SimilarPairs:
    """Return the pairs of several parts of one search, each once, sorted; with `k` only the best (see `best_pairs`)."""
    pairs = distinct(concatenated(parts))
    return pairs if k is None else best_pairs(pairs, k, symmetric=symmetric)


def distinct(pairs: SimilarPairs) -> SimilarPairs:
    """Return each pair once, sorted. Of equal pairs the first one is kept."""
    pairs = pairs.sorted()
    is_new = np.ones(len(pairs), bool)
    is_new[1:] = (pairs.i[1:] != pairs.i[:-1]) | (pairs.j[1:] != pairs.j[:-1])
    return pairs.take(is_new)


def concatenated(parts: Sequence[SimilarPairs]) -> SimilarPairs:
    parts = parts or [no_pairs()]
    return SimilarPairs(*(np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS))


def best_pairs(pairs: SimilarPairs, k: int, *, symmetric: bool) -> SimilarPairs:
    """Return the pairs that are among the `k` most similar of a row, in the order of `pairs`.

    Of equally similar pairs the one with the lower number is better.

    Args:
        symmetric: the pairs are within one set, and a pair is kept if it is among the k best of either of its rows (a
            graph of k nearest neighbours with undirected edges). Otherwise only the k best of row `i` are kept.
    """
    _, position, rank = _rank_in_row(pairs, symmetric)
    keep = np.zeros(len(pairs), bool)
    keep[position[rank < k]] = True
    return pairs.take(keep)


def _rank_in_row(pairs: SimilarPairs, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort the pairs by row, the most similar first.

    Returns:
        The row, the position in `pairs`, and the rank within the row (from 0). With `symmetric` each pair is listed
        for both of its rows.
    """
    rows, partners, similarity = pairs.i, pairs.j, pairs.similarity
    if symmetric:
        rows, partners = np.concatenate([pairs.i, pairs.j]), np.concatenate([pairs.j, pairs.i])
        similarity = np.concatenate([similarity, similarity])
    order = np.lexsort((partners, -similarity, rows))
    rows = rows[order]
    is_first = np.ones(len(rows), bool)
    is_first[1:] = rows[1:] != rows[:-1]
    starts = np.flatnonzero(is_first)
    rank = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
    return rows, order % max(len(pairs), 1), rank


class PairCollector:
    """Collects candidate pairs in at most `memory_gib`.

    Candidates have a cosine computed in float32. `finish` computes it again with `similarity_of` and drops pairs that
    are not above the threshold. So the answer does not depend on tiles, threads or the precision of the products.

    Args:
        k: wanted pairs of each row; None: all.
        symmetric: as in `best_pairs`.
        repeats: whether a pair may be added more than once.
    """

    def __init__(self, k: int | None, *, symmetric: bool, memory_gib: float, repeats: bool = False) -> None:
        self.k, self.symmetric, self._repeats = k, symmetric, repeats
        self._max_pairs = int(memory_gib * GIB / (PAIR_BYTES + RANK_BYTES))
        self._memory_gib = memory_gib
        self._parts: list[SimilarPairs] = []
        self._num_pairs = 0
        self._compact_above = min(self._max_pairs, FIRST_COMPACTION)
        # similarity that a pair of each row needs to be among its k + SLACK best. Threads read it while it is replaced,
        # so the array is never changed in place.
        self._lowest_of_row = np.full(1, -np.inf, np.float32)

    def lowest_useful(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Return the similarity below which the pairs (i, j) cannot be among the k best of those added so far."""
        lowest_of_row = self._lowest_of_row
        lowest = self._look_up(lowest_of_row, i)
        if self.symmetric:
            return np.minimum(lowest, self._look_up(lowest_of_row, j))
        return lowest + np.zeros_like(j, np.float32)

    @staticmethod
    def _look_up(lowest_of_row: np.ndarray, rows: np.ndarray) -> np.ndarray:
        values = lowest_of_row[np.minimum(rows, len(lowest_of_row) - 1)]
        return np.where(rows < len(lowest_of_row), values, np.float32(-np.inf))

    def add(self, pairs: SimilarPairs) -> None:
        """Add candidates. Raise `DinomedError` if they do not fit in memory."""
        if not len(pairs):
            return
        self._parts.append(pairs)
        self._num_pairs += len(pairs)
        if self._num_pairs > self._compact_above:
            self._compact()

    def _compact(self) -> None:
        pairs = self._join()
        self._parts, self._num_pairs = [pairs], len(pairs)
        if self._num_pairs > 0.75 * self._max_pairs:  # with more, nearly all time would be spent on compactions
            fewer = f"use a k below {self.k}" if self.k is not None else "use a k (only the best pairs of each row)"
            raise DinomedError(
                f"more than {self._num_pairs:,} pairs are above the threshold and do not fit in "
                f"{self._memory_gib:.3g} GiB; raise the threshold, {fewer}, or allow more memory"
            )
        self._compact_above = min(max(2 * self._num_pairs, FIRST_COMPACTION), self._max_pairs)

    def _join(self) -> SimilarPairs:
        """Join the parts and keep the k + SLACK best pairs of each row."""
        pairs = concatenated(self._parts)
        if self._repeats:
            pairs = distinct(pairs)
        if self.k is not None and len(pairs):
            row, position, rank = _rank_in_row(pairs, self.symmetric)
            is_last = rank == self.k + SLACK - 1
            lowest_of_row = np.full(int(row[-1]) + 1, -np.inf, np.float32)
            lowest_of_row[row[is_last]] = pairs.similarity[position[is_last]]
            self._lowest_of_row = lowest_of_row
            keep = np.zeros(len(pairs), bool)
            keep[position[rank < self.k + SLACK]] = True
            pairs = pairs.take(keep)
        return pairs

    def finish(self, x: np.ndarray, y: np.ndarray, threshold: float) -> SimilarPairs:
        """Return the pairs above the threshold, sorted.

        Args:
            x: float32 (N, D), the vectors of `i`; y: float32 (M, D), the vectors of `j`.
        """
        candidates = self._join().sorted()
        self._parts = []
        pairs = SimilarPairs(candidates.i, candidates.j, similarity_of(x, y, candidates.i, candidates.j))
        pairs = pairs.take(pairs.similarity > np.float32(threshold))
        return pairs if self.k is None else best_pairs(pairs, self.k, symmetric=self.symmetric)
