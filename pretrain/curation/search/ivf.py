"""Approximate search with an inverted file (`dinomed.features.ivf`), for more than about a million vectors.

The inverted file proposes candidates from the lists nearest to a query, by vectors that may be stored in few bytes. The
cosine of the candidates is then computed in full from the vectors. So every result is correct. The share of the true
neighbours that is found (the recall) is measured on a sample, against the exact search.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np

from dinomed.errors import DinomedError, UsageError
from dinomed.features.ivf import choose_num_lists, empty_inverted_file, train_centroids
from dinomed.io.artifacts import check_file, describe_file
from dinomed.io.files import read_json, replacing, write_json
from dinomed.log import logger
from dinomed.pretrain.curation.search.exact import MEMORY_GIB, rank_candidates, top_k
from dinomed.pretrain.curation.search.pairs import SLACK, PairCollector, SimilarPairs
from dinomed.pretrain.curation.search.vectors import (
    GIB,
    blocks,
    check_count,
    check_part,
    check_same_dimension,
    check_threshold,
    check_vectors,
)
from dinomed.progress import bar

Codec = Literal["auto", "flat", "sq8", "pq"]
FORMAT = "dinomed.index/1"
# candidates for each wanted neighbour: codes of fewer bits rank the true neighbours lower
_OVERSAMPLING = {"flat": 1, "sq8": 2, "pq": 4}
_TRAINING_VECTORS_PER_LIST = 64
_MIN_VECTORS_PER_LIST = 8
_ITERATIONS = 10  # of the k-means of the lists


@dataclass(frozen=True)
class MeasuredRecall:
    """Recall of an approximate search, measured on a sample of queries.

    Attributes:
        recall: share of the true neighbours that were found, 0 to 1.
        of: number of true neighbours.
        queries: number of queries.
        probes: lists searched for each query.
    """

    recall: float
    of: int
    queries: int
    probes: int


def choose_codec(count: int, dimension: int, memory_gib: float) -> Codec:
    """Choose the most exact codec that fits in memory: float32 values, a byte for each value, or a byte for each eight.

    Raises:
        UsageError: the shortest codes do not fit.
    """
    needed_gib = {codec: count * (_code_bytes(codec, dimension) + 8) / GIB for codec in ("flat", "sq8", "pq")}
    for codec, gib in needed_gib.items():
        if gib <= 0.7 * memory_gib:
            return codec  # type: ignore[return-value]
    raise UsageError(
        f"an index of {count:,} vectors needs {needed_gib['pq'] / 0.7:.1f} GiB, {memory_gib:g} are allowed; "
        "allow more memory, or search it shard by shard"
    )


def _code_bytes(codec: str, dimension: int) -> int:
    return {"flat": 4 * dimension, "sq8": dimension, "pq": _num_subspaces(dimension)}[codec]


def _num_subspaces(dimension: int) -> int:
    """Return the largest divisor of the dimension up to an eighth of it, for product quantisation."""
    return max(m for m in range(1, max(dimension // 8, 1) + 1) if dimension % m == 0)


class ApproximateIndex:
    """An inverted file with the vectors it was built from. `build_ivf` and `load_ivf` make one.

    Args:
        index: the inverted file, of faiss.
        x: float32 (N, D), its vectors.
        measured: recall at the number of probes to use; None before `tune_probes`.
    """

    def __init__(self, index: Any, x: np.ndarray, codec: str, measured: MeasuredRecall | None = None) -> None:
        self.index, self.x, self.codec, self.measured = index, x, codec, measured

    @property
    def probes(self) -> int:
        """Lists that are searched for each query."""
        return self.measured.probes if self.measured else min(16, self.index.nlist)

    def candidates(self, queries: np.ndarray, k: int, probes: int | None = None) -> np.ndarray:
        """Return int64 (Q, n): rows that may be among the `k` nearest of each query, unordered; -1 for none."""
        num_candidates = min(k * _OVERSAMPLING[self.codec] + SLACK, len(self.x))
        parameters: Any = faiss.SearchParametersIVF()
        parameters.nprobe = probes or self.probes
        return np.asarray(self.index.search(np.ascontiguousarray(queries), num_candidates, params=parameters)[1])

    def top_k(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the `k` most similar rows of each query, as `exact.top_k` does. Some may be missed.

        Where fewer than k are found, the row is -1 and the cosine -inf.
        """
        check_vectors(queries, "queries")
        check_same_dimension(queries, self.x)
        check_count(k, len(self.x), "k", "vectors")
        similarity, index = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        with bar("nearest", len(queries)) as progress:
            for rows in blocks(len(queries), self.x.shape[1] * 4, 2**22):
                candidates = self.candidates(queries[rows], k)
                similarity[rows], index[rows] = rank_candidates(queries[rows], self.x, candidates, k)
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
    ) -> SimilarPairs:
        """Find the pairs above a threshold, as `exact.near_pairs` does. Some may be missed.

        Args:
            queries: float32 (Q, D), for pairs from `queries` (i) to the vectors of the index (j); None: pairs within
                the vectors of the index.
            part: (n, of): search only every `of`-th block of rows. `merge_pairs` joins the results.
        """
        threshold = check_threshold(threshold)
        same = queries is None
        x = self.x if queries is None else check_vectors(queries, "queries")
        check_same_dimension(x, self.x)
        check_count(k, len(self.x) - same, "k", "vectors")
        check_part(part)
        collector = PairCollector(k, symmetric=same, memory_gib=memory_gib, repeats=same)
        row_blocks = list(blocks(len(x), 1, 1024))[part[0] :: part[1]]
        with bar("near pairs (approximate)", sum(rows.stop - rows.start for rows in row_blocks)) as progress:
            for rows in row_blocks:
                candidates = self.candidates(x[rows], k + same)
                similarity, index = rank_candidates(x[rows], self.x, candidates, candidates.shape[1])
                i, place = np.nonzero((index >= 0) & (similarity > np.float32(threshold)))
                pairs = SimilarPairs(i + rows.start, index[i, place], similarity[i, place])
                collector.add(_ascending(pairs) if same else pairs)
                progress.advance(rows.stop - rows.start)
        return collector.finish(x, self.x, threshold)


def _ascending(pairs: SimilarPairs) -> SimilarPairs:
    """Order each pair so that i < j, and drop pairs of a row with itself. A pair may be there twice."""
    low, high = np.minimum(pairs.i, pairs.j), np.maximum(pairs.i, pairs.j)
    return SimilarPairs(low, high, pairs.similarity).take(low < high)


def build_ivf(
    x: np.ndarray, *, codec: Codec = "auto", lists: int | None = None, memory_gib: float = MEMORY_GIB, seed: int = 0
) -> ApproximateIndex:
    """Build an inverted file over float32 (N, D), rows of length 1, in memory or mapped.

    Args:
        codec: how vectors are stored: `flat` in float32, `sq8` a byte for each value, `pq` a byte for each eight values
            (product quantisation); `auto` is the first of these that fits in memory.
        lists: by default and at most 4 sqrt(N).
        memory_gib: limit for the index and for its training.

    Raises:
        UsageError: the index does not fit.
        DinomedError: vectors that are not finite or not of length 1.
    """
    check_vectors(x)
    count, dimension = x.shape
    if codec == "auto":
        codec = choose_codec(count, dimension, memory_gib)
    lists = min(lists or count, choose_num_lists(count, _MIN_VECTORS_PER_LIST))
    sample = _training_rows(x, lists, memory_gib, seed)
    centroids = train_centroids(sample, lists, iterations=_ITERATIONS, seed=seed)
    # "np": without polysemous training, which takes most of the time and whose shortcut is not used here
    faiss_codec = {"flat": "Flat", "sq8": "SQ8", "pq": f"PQ{_num_subspaces(dimension)}np"}[codec]
    index = empty_inverted_file(centroids, faiss_codec, sample=sample, seed=seed)
    with bar("index", count) as progress:
        for rows in blocks(count, dimension * 4):
            index.add(np.ascontiguousarray(x[rows]))
            progress.advance(rows.stop - rows.start)
    return ApproximateIndex(index, x, codec)


def _training_rows(x: np.ndarray, lists: int, memory_gib: float, seed: int) -> np.ndarray:
    max_rows = int(0.5 * memory_gib * GIB / (x.shape[1] * 4))
    count = min(len(x), max(min(lists * _TRAINING_VECTORS_PER_LIST, max_rows), lists, 1024))
    rng = np.random.default_rng(seed)
    return x[np.sort(rng.choice(len(x), count, replace=False))]


def tune_probes(
    index: ApproximateIndex,
    *,
    k: int,
    threshold: float | None = None,
    target: float = 0.95,
    queries: int = 1000,
    seed: int = 0,
) -> MeasuredRecall:
    """Find the smallest number of probes (1, 2, 4, ...) with the target recall, and use it for `index`.

    The recall is measured on a random sample of rows. It is the share of their true neighbours that are found: of the
    `k` nearest, those above the threshold (all `k` without a threshold). If no row of the sample has a neighbour above
    the threshold, the nearest neighbour of each row counts.

    Args:
        target: recall, 0 to 1. If all lists together do not reach it, all lists are searched, and a warning states
            the recall.
        queries: rows of the sample.
    """
    x = index.x
    check_count(k, len(x) - 1, "k", "other vectors")
    rows = np.sort(np.random.default_rng(seed).choice(len(x), min(queries, len(x)), replace=False))
    similarity, neighbors = top_k(x[rows], x, k + 1, description="exact neighbours of a sample")
    is_true = neighbors != rows[:, None]
    is_true &= np.cumsum(is_true, axis=1) <= k
    if threshold is not None:
        above = is_true & (similarity > np.float32(threshold))
        is_true = above if above.any() else is_true & (np.cumsum(is_true, axis=1) == 1)
    probes = 1
    while True:
        candidates = index.candidates(x[rows], k + 1, probes)
        hit = np.array([np.isin(exact, approximate) for exact, approximate in zip(neighbors, candidates, strict=True)])
        recall = float((hit & is_true).sum() / is_true.sum())
        if recall >= target or probes == index.index.nlist:
            break
        probes = min(2 * probes, index.index.nlist)
    if recall < target:
        logger.warning(
            f"the approximate search finds {recall:.1%} of the neighbours with all lists, the target is {target:.1%}: "
            "its codes are too short; allow more memory"
        )
    index.measured = MeasuredRecall(recall, int(is_true.sum()), len(rows), probes)
    return index.measured


def write_ivf(index: ApproximateIndex, path: str | Path) -> None:
    """Write the inverted file, and ``NAME.json`` with its size, codec, recall and checksum. The vectors are not
    written."""
    path = Path(path)
    with replacing(path) as temporary:
        faiss.write_index(index.index, str(temporary))
    count, dimension = index.x.shape
    measured = asdict(index.measured) if index.measured else None
    record = {"format": FORMAT, "count": count, "dimension": dimension, "codec": index.codec, "measured": measured}
    write_json(_record_path(path), {**record, "file": describe_file(path)})


def load_ivf(path: str | Path, x: np.ndarray) -> ApproximateIndex:
    """Load the inverted file that `write_ivf` wrote, mapped from its file.

    Args:
        x: float32 (N, D), the vectors that it was built from.

    Raises:
        DinomedError: a damaged file, or another number or dimension of vectors.
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
    check_file(path, record["file"])
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    measured = record["measured"] and MeasuredRecall(**record["measured"])
    return ApproximateIndex(index, x, record["codec"], measured)


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")
