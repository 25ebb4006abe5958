"""Pairs of rows with their similarity: what a search finds, in a form that shards can be merged from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dinomed.errors import DinomedError
from dinomed.pretrain.curation.vectors import GIB, similarity_of

# a pair held (twice while parts are joined), and what choosing the best of each row needs beside it at its peak
PAIR_BYTES, RANK_BYTES = 40, 110
FIRST_COMPACTION = 4_000_000  # pairs


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
    count = len(pairs)
    if symmetric:
        rows = np.concatenate([pairs.i, pairs.j])
        others = np.concatenate([pairs.j, pairs.i])
        order = np.lexsort((others, -np.concatenate([pairs.similarity, pairs.similarity]), rows))
    else:
        rows = pairs.i
        order = np.lexsort((pairs.j, -pairs.similarity, rows))
    grouped = rows[order]
    first = np.flatnonzero(np.concatenate([[True], grouped[1:] != grouped[:-1]])) if len(grouped) else grouped
    rank = np.arange(len(grouped)) - np.repeat(first, np.diff(np.append(first, len(grouped))))
    keep = np.zeros(count, bool)
    keep[order[rank < k] % max(count, 1)] = True
    return pairs.take(keep)


class Collector:
    """Gathers candidates, and never holds more than `memory_gib` of them.

    Candidates carry a similarity in single precision, wrong by `margin` at most. `finish` computes it as
    `similarity_of` does and drops what is not above the threshold, so that the answer does not depend on the tiles.
    """

    SLACK = 8  # beyond k, so that rounding does not decide which of near-equals is among the k

    def __init__(self, k: int | None, *, symmetric: bool, memory_gib: float, repeats: bool = False) -> None:
        """`repeats`: a pair may be added more than once."""
        self.k, self.symmetric, self._repeats = k, symmetric, repeats
        self._limit = int(memory_gib * GIB / (PAIR_BYTES + RANK_BYTES))
        self._memory_gib = memory_gib
        self._parts: list[Pairs] = []
        self._held = 0
        self._next = min(self._limit, FIRST_COMPACTION)

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
        if self._held > self._limit // 2:
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
        if self.k is not None:
            held = best_pairs(held, self.k + self.SLACK, symmetric=self.symmetric)
        return held

    def finish(self, x: np.ndarray, y: np.ndarray, threshold: float) -> Pairs:
        """The pairs above the threshold, sorted; `x` and `y` are what i and j are rows of."""
        found = self._joined().sorted()
        self._parts = []
        exact = Pairs(found.i, found.j, similarity_of(x, y, found.i, found.j))
        exact = exact.take(exact.similarity > np.float32(threshold))
        return exact if self.k is None else best_pairs(exact, self.k, symmetric=self.symmetric)
