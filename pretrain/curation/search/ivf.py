"""Approximate search with an inverted file (faiss IVF), for more than about a million vectors.

Candidates come from codes and from a few lists only; their similarity is then computed in full from the vectors. So
whatever is found is true, and what is missed is measured, on a sample, against the exact answer.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np

from dinomed.errors import DinomedError, UsageError
from dinomed.features.ivf import choose_num_lists, empty_inverted_file, train_centroids
from dinomed.io.files import read_json, replacing, sha256_file, write_json
from dinomed.log import logger
from dinomed.pretrain.curation.search.exact import MEMORY_GIB, near_pairs, rank, top_k
from dinomed.pretrain.curation.search.pairs import SLACK, Collector, Pairs
from dinomed.pretrain.curation.search.vectors import (
    GIB,
    blocks,
    check_count,
    check_same_dimension,
    check_threshold,
    check_vectors,
)
from dinomed.progress import bar

Codec = Literal["auto", "flat", "sq8", "pq"]
EXACT_UP_TO = 1_000_000
"""Vectors up to which the exact search is the better one (about 20 minutes of one processor)."""
FORMAT = "dinomed.index/1"
# candidates for each neighbour that is wanted: codes of fewer bits put the true ones further down
_OVERSAMPLING = {"flat": 1, "sq8": 2, "pq": 4}
_TRAIN_EACH = 64
_VECTORS_PER_LIST = 8  # at least
_ITERATIONS = 10  # of the k-means of the lists


@dataclass(frozen=True)
class Measured:
    """What a search finds of the exact answer, on a sample."""

    recall: float  # 0 .. 1
    of: int  # true neighbours that it is a share of
    queries: int
    probes: int  # lists that are looked into for each query


def choose_codec(count: int, dimension: int, memory_gib: float) -> Codec:
    """The most exact codes that fit: vectors as they are, a byte for each value, or a byte for each eight.

    Raises:
        UsageError: even the shortest do not fit.
    """
    need = {codec: count * (_code_bytes(codec, dimension) + 8) / GIB for codec in ("flat", "sq8", "pq")}
    for codec, gib in need.items():
        if gib <= 0.7 * memory_gib:
            return codec  # type: ignore[return-value]
    raise UsageError(
        f"an index of {count:,} vectors needs {need['pq'] / 0.7:.1f} GiB, {memory_gib:g} are allowed: "
        "allow more, or search it shard by shard"
    )


def _code_bytes(codec: str, dimension: int) -> int:
    return {"flat": 4 * dimension, "sq8": dimension, "pq": _subspaces(dimension)}[codec]


def _subspaces(dimension: int) -> int:
    """For product quantisation: about an eighth of the dimension, and a divisor of it."""
    return max(m for m in range(1, max(dimension // 8, 1) + 1) if dimension % m == 0)


class Searcher:
    """An index together with the vectors it is of. Make one with `build_index` or `load_index`."""

    def __init__(self, index: Any, x: np.ndarray, codec: str, measured: Measured | None = None) -> None:
        self.index, self.x, self.codec, self.measured = index, x, codec, measured

    @property
    def probes(self) -> int:
        return self.measured.probes if self.measured else min(16, self.index.nlist)

    def candidates(self, queries: np.ndarray, k: int, probes: int | None = None) -> np.ndarray:
        """int64 (Q, n): rows that may be among the `k` nearest of each query, in no order; -1 is none."""
        wanted = min(k * _OVERSAMPLING[self.codec] + SLACK, len(self.x))
        parameters: Any = faiss.SearchParametersIVF()
        parameters.nprobe = probes or self.probes
        return np.asarray(self.index.search(np.ascontiguousarray(queries), wanted, params=parameters)[1])

    def top_k(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `neighbors.top_k`, but some may be missed; where fewer than k were found, -1 with a cosine of -inf."""
        check_vectors(queries, "queries")
        check_same_dimension(queries, self.x)
        check_count(k, len(self.x), "k", "vectors")
        similarity, index = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        with bar("nearest", len(queries)) as progress:
            for rows in blocks(len(queries), self.x.shape[1] * 4, 2**22):
                found = self.candidates(queries[rows], k)
                similarity[rows], index[rows] = rank(queries[rows], self.x, found, k)
                progress.advance(rows.stop - rows.start)
        return similarity, index

    def near_pairs(
        self,
        queries: np.ndarray | None = None,
        *,
        threshold: float,
        k: int,
        memory_gib: float = MEMORY_GIB,
        part: tuple[int, int] = (0, 1),
    ) -> Pairs:
        """As `neighbors.near_pairs`, but some may be missed: within the vectors of the index, or from `queries` (i) to
        them (j). A part is every so many-th row here as there, so that `merge_pairs` puts them together."""
        threshold = check_threshold(threshold)
        same = queries is None
        rows = self.x if queries is None else check_vectors(queries, "queries")
        check_same_dimension(rows, self.x)
        check_count(k, len(self.x) - same, "k", "vectors")
        if not 0 <= part[0] < part[1]:
            raise UsageError(f"part {part[0]} of {part[1]}: parts are counted from 0")
        collector = Collector(k, symmetric=same, memory_gib=memory_gib, repeats=same)
        slices = list(blocks(len(rows), 1, 1024))[part[0] :: part[1]]
        with bar("near pairs (approximate)", sum(rows_of.stop - rows_of.start for rows_of in slices)) as progress:
            for rows_of in slices:
                found = self.candidates(rows[rows_of], k + same)
                similarity, index = rank(rows[rows_of], self.x, found, found.shape[1])
                i, place = np.nonzero((index >= 0) & (similarity > np.float32(threshold)))
                pairs = Pairs(i + rows_of.start, index[i, place], similarity[i, place])
                collector.add(_upward(pairs) if same else pairs)
                progress.advance(rows_of.stop - rows_of.start)
        return collector.finish(rows, self.x, threshold)


def _upward(pairs: Pairs) -> Pairs:
    """i < j, without a row and itself. Found from both ends, a pair is there twice."""
    low, high = np.minimum(pairs.i, pairs.j), np.maximum(pairs.i, pairs.j)
    return Pairs(low, high, pairs.similarity).take(low < high)


def build_index(
    x: np.ndarray, *, codec: Codec = "auto", lists: int | None = None, memory_gib: float = MEMORY_GIB, seed: int = 0
) -> Searcher:
    """An inverted file over float32 (N, D), rows of length 1, in memory or mapped.

    Args:
        codec: how vectors are kept: ``flat`` as they are, ``sq8`` a byte for each value, ``pq`` a byte for each eight
            (product quantisation); ``auto`` is the first of these that fits.
        lists: by default and at most 4 sqrt(N).
        memory_gib: for the index and for its training.

    Raises:
        UsageError: the index does not fit.
        DinomedError: vectors that are not finite or not of length 1.
    """
    check_vectors(x)
    count, dimension = x.shape
    if codec == "auto":
        codec = choose_codec(count, dimension, memory_gib)
    lists = (
        choose_num_lists(count, _VECTORS_PER_LIST) if lists is None else max(min(lists, count // _VECTORS_PER_LIST), 1)
    )
    kind = {"flat": "Flat", "sq8": "SQ8", "pq": f"PQ{_subspaces(dimension)}np"}[codec]
    # np: without the polysemous training, whose shortcut is not used here and which takes most of the time
    sample = _training_rows(x, lists, memory_gib, seed)
    centroids = train_centroids(sample, lists, iterations=_ITERATIONS, seed=seed)
    index = empty_inverted_file(centroids, kind, sample=sample, seed=seed)
    with bar("index", count) as progress:
        for rows in blocks(count, dimension * 4):
            index.add(np.ascontiguousarray(x[rows]))
            progress.advance(rows.stop - rows.start)
    return Searcher(index, x, codec)


def _training_rows(x: np.ndarray, lists: int, memory_gib: float, seed: int) -> np.ndarray:
    affordable = int(0.5 * memory_gib * GIB / (x.shape[1] * 4))
    count = min(len(x), max(min(lists * _TRAIN_EACH, affordable), lists, 1024))
    rng = np.random.default_rng(seed)
    return x[np.sort(rng.choice(len(x), count, replace=False))]


def tune(
    searcher: Searcher,
    *,
    k: int,
    threshold: float | None = None,
    target: float = 0.95,
    queries: int = 1000,
    seed: int = 0,
) -> Measured:
    """Look into as few lists as give the wanted recall, and say what it is; the searcher then does so.

    The recall is the share of the true neighbours of a random sample of rows that are found: of the `k` nearest, those
    above the threshold (of all `k` without one). Where the sample has none above it, the nearest of each row counts.

    Args:
        target: if no number of lists reaches it, all lists are looked into, and a warning says what that gives.
    """
    x = searcher.x
    check_count(k, len(x) - 1, "k", "other vectors")
    rows = np.sort(np.random.default_rng(seed).choice(len(x), min(queries, len(x)), replace=False))
    similarity, exact = top_k(x[rows], x, k + 1, description="exact neighbours of a sample")
    true = exact != rows[:, None]
    true &= np.cumsum(true, axis=1) <= k
    if threshold is not None:
        above = true & (similarity > np.float32(threshold))
        true = above if above.any() else true & (np.cumsum(true, axis=1) == 1)
    probes = 1
    while True:
        found = searcher.candidates(x[rows], k + 1, probes)
        hit = np.array([np.isin(mine, theirs) for mine, theirs in zip(exact, found, strict=True)])
        recall = float((hit & true).sum() / true.sum())
        if recall >= target or probes == searcher.index.nlist:
            break
        probes = min(2 * probes, searcher.index.nlist)
    if recall < target:
        logger.warning(
            f"the index finds {recall:.1%} of the neighbours even in all its lists ({target:.1%} were wanted); "
            "its codes are too short: allow more memory"
        )
    searcher.measured = Measured(recall, int(true.sum()), len(rows), probes)
    return searcher.measured


def find_pairs(
    x: np.ndarray,
    y: np.ndarray | None = None,
    *,
    threshold: float,
    k: int,
    recall: float = 0.95,
    memory_gib: float = MEMORY_GIB,
    exact_up_to: int = EXACT_UP_TO,
    seed: int = 0,
) -> tuple[Pairs, Measured | None]:
    """As `neighbors.near_pairs` with a k; beyond so many vectors (squared: products) by an index tuned to a recall.

    Returns:
        The pairs, and what the approximate search was measured to find; None if the search was exact.
    """
    target = x if y is None else y
    if len(x) * len(target) <= exact_up_to**2:
        return near_pairs(x, y, threshold=threshold, k=k, memory_gib=memory_gib), None
    check_count(k, len(target) - 1, "k", "other vectors")
    searcher = build_index(target, memory_gib=memory_gib / 2, seed=seed)
    measured = tune(searcher, k=k, threshold=threshold, target=recall, seed=seed)
    return searcher.near_pairs(None if y is None else x, threshold=threshold, k=k, memory_gib=memory_gib / 2), measured


def write_index(searcher: Searcher, path: str | Path) -> None:
    """The index, and beside it ``NAME.json`` with what it is of and its checksum. The vectors are not in it."""
    path = Path(path)
    with replacing(path) as temporary:
        faiss.write_index(searcher.index, str(temporary))
    count, dimension = searcher.x.shape
    measured = asdict(searcher.measured) if searcher.measured else None
    record = {"format": FORMAT, "count": count, "dimension": dimension, "codec": searcher.codec, "measured": measured}
    write_json(_record_path(path), {**record, "sha256": sha256_file(path)})


def load_index(path: str | Path, x: np.ndarray) -> Searcher:
    """The index that `write_index` wrote, mapped from its file, together with its vectors.

    Raises:
        DinomedError: damaged, cut off, or of other vectors (their number and dimension are compared).
    """
    path = Path(path)
    record = read_json(_record_path(path))
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DinomedError(f"{_record_path(path)} does not describe an index of dinomed; build it again")
    if (record["count"], record["dimension"]) != x.shape:
        raise DinomedError(
            f"index {path} is of {record['count']} vectors of {record['dimension']} values, not of {x.shape[0]} of "
            f"{x.shape[1]}; build it again"
        )
    if not path.is_file() or sha256_file(path) != record["sha256"]:
        raise DinomedError(f"index {path} is missing, cut off or changed; build it again")
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    measured = record["measured"] and Measured(**record["measured"])
    return Searcher(index, x, record["codec"], measured)


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")
