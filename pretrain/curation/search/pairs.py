"""Pairs of rows with their similarity: what a search finds, in a form that shards can be merged from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dinomed.errors import DinomedError
from dinomed.pretrain.curation.search.vectors import GIB, similarity_of

# a pair held (twice while parts are joined), and what choosing the best of each row needs beside it at its peak
PAIR_BYTES, RANK_BYTES = 40, 110
FIRST_COMPACTION = 1_000_000  # pairs
SLACK = 8  # more than k are kept until the end, so that rounding does not decide which of near-equals is among the k


@dataclass(frozen=True)
class Pairs:
    """Row `i[n]` of a first set, row `j[n]` of a second (within one set i < j), and their cosine; sorted by (i, j)."""

    i: np.ndarray  # int64 (P,)
    j: np.ndarray  # int64 (P,)
    similarity: np.ndarray  # float32 (P,)

    def __len__(self) -> int:
        return len(self.i)

    def take(self, chosen: np.ndarray) -> "Pairs":
        """The pairs at an index or under a mask."""
        return Pairs(self.i[chosen], self.j[chosen], self.similarity[chosen])

    def shifted(self, i: int, j: int) -> "Pairs":
        """With `i` and `j` added to the rows: from the numbers of a shard to those of the whole."""
        return Pairs(self.i + i, self.j + j, self.similarity)

    def sorted(self) -> "Pairs":
        return self.take(np.lexsort((self.j, self.i)))

    def table(self) -> pa.Table:
        """Arrow, columns `i`, `j`, `similarity`."""
        return pa.table({"i": pa.array(self.i), "j": pa.array(self.j), "similarity": pa.array(self.similarity)})


def from_table(table: pa.Table) -> Pairs:
    """Back from `Pairs.table`."""
    kinds = {"i": np.int64, "j": np.int64, "similarity": np.float32}
    return Pairs(*(table[name].to_numpy().astype(kind, copy=False) for name, kind in kinds.items()))


def no_pairs() -> Pairs:
    return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


def merge_pairs(parts: Sequence[Pairs], *, k: int | None = None, symmetric: bool = True) -> Pairs:
    """The pairs of several parts of one search, each once, sorted; with `k` the best of each row (see `best_pairs`)."""
    every = distinct(concatenated(parts))
    return every if k is None else best_pairs(every, k, symmetric=symmetric)


def distinct(pairs: Pairs) -> Pairs:
    """Each pair once, sorted."""
    pairs = pairs.sorted()
    new = np.ones(len(pairs), bool)
    new[1:] = (pairs.i[1:] != pairs.i[:-1]) | (pairs.j[1:] != pairs.j[:-1])
    return pairs.take(new)


def concatenated(parts: Sequence[Pairs]) -> Pairs:
    parts = parts or [no_pairs()]
    return Pairs(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("i", "j", "similarity")))


def best_pairs(pairs: Pairs, k: int, *, symmetric: bool) -> Pairs:
    """Those among the `k` most similar of a row; of equals, the lower number. In the order given.

    `symmetric` (pairs within one set): among the k of either end, as in a graph of k nearest neighbours whose edges
    have no direction. Otherwise: among the k of row `i`.
    """
    _, pair, rank = _ranked(pairs, symmetric)
    keep = np.zeros(len(pairs), bool)
    keep[pair[rank < k]] = True
    return pairs.take(keep)


def _ranked(pairs: Pairs, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row by row, the best first: the row, the number of the pair, and its rank in the row. With `symmetric` a pair is
    there for both of its rows."""
    rows, others, similarity = pairs.i, pairs.j, pairs.similarity
    if symmetric:
        rows, others = np.concatenate([pairs.i, pairs.j]), np.concatenate([pairs.j, pairs.i])
        similarity = np.concatenate([similarity, similarity])
    order = np.lexsort((others, -similarity, rows))
    rows = rows[order]
    new = np.ones(len(rows), bool)
    new[1:] = rows[1:] != rows[:-1]
    first = np.flatnonzero(new)
    rank = np.arange(len(rows)) - np.repeat(first, np.diff(np.append(first, len(rows))))
    return rows, order % max(len(pairs), 1), rank


class Collector:
    """Gathers candidates, and never holds more than `memory_gib` of them.

    Candidates carry a similarity in single precision. `finish` computes it as `similarity_of` does and drops what is
    not above the threshold, so that the answer does not depend on tiles, threads or the kind of product.
    """

    def __init__(self, k: int | None, *, symmetric: bool, memory_gib: float, repeats: bool = False) -> None:
        """`repeats`: a pair may be added more than once."""
        self.k, self.symmetric, self._repeats = k, symmetric, repeats
        self._limit = int(memory_gib * GIB / (PAIR_BYTES + RANK_BYTES))
        self._memory_gib = memory_gib
        self._parts: list[Pairs] = []
        self._held = 0
        self._next = min(self._limit, FIRST_COMPACTION)
        # similarity that a pair of a row needs to be among its k + SLACK; replaced as a whole, as threads read it
        self._needed = np.full(1, -np.inf, np.float32)

    def needed(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """The similarity below which a pair cannot be among the k of what has been added so far, of i and j's shape."""
        needed = self._needed
        least = self._look_up(needed, i)
        return np.minimum(least, self._look_up(needed, j)) if self.symmetric else least + np.zeros_like(j, np.float32)

    @staticmethod
    def _look_up(needed: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.where(rows < len(needed), needed[np.minimum(rows, len(needed) - 1)], np.float32(-np.inf))

    def add(self, pairs: Pairs) -> None:
        """Raises `DinomedError` if the pairs do not fit."""
        if not len(pairs):
            return
        self._parts.append(pairs)
        self._held += len(pairs)
        if self._held > self._next:
            self._compact()

    def _compact(self) -> None:
        held = self._joined()
        self._parts, self._held = [held], len(held)
        if self._held > 0.75 * self._limit:  # more, and it would do little else than choose
            fewer = f"a k below {self.k}" if self.k is not None else "a k (only the best of each row)"
            raise DinomedError(
                f"more than {self._held:,} pairs are above the threshold and do not fit in {self._memory_gib:.3g} GiB; "
                f"raise the threshold, give {fewer}, or allow more memory"
            )
        self._next = min(max(2 * self._held, FIRST_COMPACTION), self._limit)

    def _joined(self) -> Pairs:
        held = concatenated(self._parts)
        if self._repeats:
            held = distinct(held)
        if self.k is not None and len(held):
            row, pair, rank = _ranked(held, self.symmetric)
            last = rank == self.k + SLACK - 1
            needed = np.full(int(row[-1]) + 1, -np.inf, np.float32)
            needed[row[last]] = held.similarity[pair[last]]
            self._needed = needed
            keep = np.zeros(len(held), bool)
            keep[pair[rank < self.k + SLACK]] = True
            held = held.take(keep)
        return held

    def finish(self, x: np.ndarray, y: np.ndarray, threshold: float) -> Pairs:
        """The pairs above the threshold, sorted; `x` and `y` are what i and j are rows of."""
        found = self._joined().sorted()
        self._parts = []
        exact = Pairs(found.i, found.j, similarity_of(x, y, found.i, found.j))
        exact = exact.take(exact.similarity > np.float32(threshold))
        return exact if self.k is None else best_pairs(exact, self.k, symmetric=self.symmetric)
