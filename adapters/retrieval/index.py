"""The vectors of an index: the file format, and the search by vectors.

An index is a folder with `index.safetensors` and, for people, `index.json`. `index.safetensors` is complete by itself:
it holds the vectors, the whitening, the graph, what the check of unlike images needs
(`dinomed.features.familiarity`), and the manifest of the images (Parquet, as bytes). The record in its
header holds the hash of all of them. So one rename replaces an older index, and damage is found before any search.
Nothing in it is pickled, and no file of faiss is read (`dinomed.adapters.retrieval.engine`).

An index contains the paths, groups and labels of its images. Protect it as you protect the manifest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field

from dinomed.adapters.record import BackboneReference
from dinomed.adapters.retrieval.engine import Arrays, Kind, restore, search_graph
from dinomed.adapters.retrieval.pool import Pooling, Whitening
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.config import Config
from dinomed.datasets.manifest import FIXED, Manifest, leaves_root
from dinomed.datasets.tables import read_parquet
from dinomed.errors import DinomedError, UsageError, first_line
from dinomed.features.familiarity.reference import TrainingReference, reference_from_tensors
from dinomed.features.neighbors import normalised, search_exactly
from dinomed.io.files import to_json, write_json
from dinomed.io.tensor_file import check_tensors, hash_tensors, parse_record, read_header, read_tensors, write_tensors
from dinomed.notice import RESEARCH_USE

FORMAT: Final = "dinomed.index/2"
INDEX_FILE, RECORD_FILE = "index.safetensors", "index.json"
_HEADER, _GRAPH, _REFERENCE, _ROWS = "index", "graph.", "reference.", "manifest"
_MAX_FROM_GRAPH = 1000  # neighbours; for more the exact search is as fast
_BLOCK = 256  # queries that are searched at a time


class IndexRecord(Config):
    """Record of an index: how its vectors were computed, and where its images and its backbone are.

    `root` is the root folder of the images, relative to the index. `manifest` is the fingerprint of the manifest.
    """

    format: Literal["dinomed.index/2"] = FORMAT
    purpose: str = RESEARCH_USE
    kind: Kind
    metric: Literal["cosine"] = "cosine"
    count: int = Field(ge=1)
    dimension: int = Field(ge=1)
    pooling: Pooling
    whitened: bool
    backbone: BackboneReference
    preprocessing: Preprocessing
    root: str = Field(max_length=4096)
    manifest: str
    written: dict[str, Any]
    content_sha256: str


@dataclass(frozen=True)
class Neighbor:
    """A similar image: its row in the index, and the cosine similarity to the query (-1 to 1)."""

    row: int
    similarity: float


@dataclass
class VectorIndex:
    """Feature vectors of the images of a manifest, float32 (N, D) of length 1, with nearest-neighbour search.

    `graph` is the faiss index of an approximate kind; None means that every search is exact. `reference` holds features
    by which an image is found to be unlike those of the index.
    """

    record: IndexRecord
    manifest: Manifest
    vectors: np.ndarray
    whitening: Whitening | None
    graph: Any = None
    reference: TrainingReference | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def prepare(self, pooled: np.ndarray) -> np.ndarray:
        """Return pooled features (N, C) as query vectors (N, D): whitened as the index is, of length 1."""
        return unit_vectors(pooled, self.whitening, "query")

    def nearest(
        self,
        queries: np.ndarray,
        k: int,
        *,
        allowed: np.ndarray | None = None,
        excluded: Sequence[np.ndarray] | None = None,
        exact: bool = False,
    ) -> list[list[Neighbor]]:
        """Return the `k` nearest images of each query, best first; fewer only if there are fewer.

        With `allowed` the search is exact, over these rows only. Without it, HNSW and IVF search approximately; a query
        for which they find too few images is searched again, exactly.

        Args:
            queries: (Q, D), from `prepare`.
            allowed: rows that may be returned, bool (N,).
            excluded: for each query the rows (int64) that must not be returned.
            exact: do not use the graph.

        Raises:
            UsageError: k below 1, or queries of another dimension.
            DinomedError: a query with values that are not finite.
        """
        if k < 1:
            raise UsageError(f"k is {k}; at least 1 result is needed")
        if queries.ndim != 2 or queries.shape[1] != self.record.dimension:
            raise UsageError(f"queries of {queries.shape[-1]} values against an index of {self.record.dimension}")
        queries = normalised(queries, "query")
        excluded = [np.empty(0, np.int64)] * len(queries) if excluded is None else excluded
        limit = k + max((len(rows) for rows in excluded), default=0)
        rows = None if allowed is None else np.flatnonzero(allowed)
        approximate = self.graph is not None and rows is None and not exact and limit <= _MAX_FROM_GRAPH
        neighbors: list[list[Neighbor]] = []
        for start in range(0, len(queries), _BLOCK):
            block = slice(start, start + _BLOCK)
            if approximate:
                neighbors += self._nearest_by_graph(queries[block], excluded[block], k, min(limit, len(self)))
            else:
                neighbors += self._nearest_exactly(queries[block], excluded[block], k, rows)
        return neighbors

    def _nearest_by_graph(
        self, queries: np.ndarray, excluded: Sequence[np.ndarray], k: int, limit: int
    ) -> list[list[Neighbor]]:
        """Ask the graph for `limit` images of each query; search exactly where fewer than `k` remain."""
        neighbors = _remove_excluded(*search_graph(self.graph, queries, limit), excluded, k)
        short = [i for i, best in enumerate(neighbors) if len(best) < min(k, len(self) - len(excluded[i]))]
        if short:
            exact = self._nearest_exactly(queries[short], [excluded[i] for i in short], k, None)
            for i, best in zip(short, exact, strict=True):
                neighbors[i] = best
        return neighbors

    def _nearest_exactly(
        self, queries: np.ndarray, excluded: Sequence[np.ndarray], k: int, rows: np.ndarray | None
    ) -> list[list[Neighbor]]:
        vectors = self.vectors if rows is None else self.vectors[rows]
        limit = k + max((len(gone) for gone in excluded), default=0)
        similarities, places = search_exactly(queries, vectors, limit)
        return _remove_excluded(similarities, places if rows is None else rows[places], excluded, k)


def _remove_excluded(
    similarities: np.ndarray, rows: np.ndarray, excluded: Sequence[np.ndarray], k: int
) -> list[list[Neighbor]]:
    """Return the first `k` neighbours of each query that exist and are not excluded."""
    neighbors = []
    for values, places, gone in zip(similarities, rows, excluded, strict=True):
        good = (places >= 0) & ~np.isin(places, gone)
        best = zip(places[good][:k].tolist(), values[good][:k].tolist(), strict=True)
        neighbors.append([Neighbor(row, value) for row, value in best])
    return neighbors


def unit_vectors(pooled: np.ndarray, whitening: Whitening | None, kind: str = "vector") -> np.ndarray:
    """Return float32 vectors (N, D) of length 1; raise a `DinomedError` that names the first that is not finite."""
    plain = normalised(pooled, kind)
    return plain if whitening is None else normalised(whitening(plain), kind)


def write_index(index: VectorIndex, graph: Arrays, folder: Path) -> None:
    """Write the files of an index into an empty folder, such as a stage."""
    data = index.record.model_dump(mode="json")
    write_tensors(folder / INDEX_FILE, _tensors(index, graph), {_HEADER: to_json(data)})
    write_json(folder / RECORD_FILE, data)


def content_hash(index: VectorIndex, graph: Arrays) -> str:
    """Return the value of `content_sha256` for the record."""
    return hash_tensors(_tensors(index, graph))


def read_index_record(folder: str | Path) -> IndexRecord:
    """Read the record of an index.

    Raises:
        UsageError: the folder holds no index.
        DinomedError: the index is damaged, or of another version.
    """
    folder = Path(folder)
    path = folder / INDEX_FILE
    if not path.is_file():
        problem = "does not exist" if not folder.exists() else f"is no index (it holds no {INDEX_FILE})"
        raise UsageError(f"{folder} {problem}; make one: dinomed index MANIFEST --backbone B -o {folder}")
    data = read_header(path, _HEADER, "index again")
    return parse_record(path, data, IndexRecord, FORMAT, "index again")


def read_index(folder: str | Path) -> VectorIndex:
    """Read an index with its vectors. The image files may be missing: only evidence and demo pages read them.

    Raises:
        UsageError: the folder holds no index.
        DinomedError: the index is damaged.
    """
    folder = Path(folder)
    record, path = read_index_record(folder), folder / INDEX_FILE
    tensors = read_tensors(path)
    check_tensors(path, tensors, record.content_sha256, "copy it again, or index again")
    try:
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        vectors = np.ascontiguousarray(arrays["vectors"])
        if vectors.dtype != np.float32 or vectors.shape != (record.count, record.dimension):
            raise DinomedError("its vectors have another shape than its record says")
        if not np.isfinite(vectors).all():
            raise DinomedError("some of its vectors are not finite")
        manifest = Manifest(_read_rows(arrays[_ROWS], record), folder / record.root)
        whitening = _read_whitening(arrays, record)
        graph = {name.removeprefix(_GRAPH): value for name, value in arrays.items() if name.startswith(_GRAPH)}
        kept = {name.removeprefix(_REFERENCE): value for name, value in tensors.items() if name.startswith(_REFERENCE)}
        reference = reference_from_tensors(kept)
        return VectorIndex(record, manifest, vectors, whitening, restore(record.kind, vectors, graph), reference)
    except KeyError as error:
        raise DinomedError(f"{path} is damaged: no {error}; index again") from None
    except (DinomedError, ArithmeticError, RuntimeError, TypeError, ValueError, pa.ArrowException) as error:
        raise DinomedError(f"{path} is damaged: {first_line(error)}; index again") from None


def _tensors(index: VectorIndex, graph: Arrays) -> dict[str, torch.Tensor]:
    sink = pa.BufferOutputStream()
    pq.write_table(index.manifest.table.replace_schema_metadata(None), sink, compression="zstd")
    arrays: Arrays = {"vectors": index.vectors, _ROWS: np.frombuffer(sink.getvalue(), np.uint8).copy()}
    if index.whitening is not None:
        arrays |= {"whitening.mean": index.whitening.mean, "whitening.matrix": index.whitening.matrix}
    arrays |= {_GRAPH + name: value for name, value in graph.items()}
    reference = {} if index.reference is None else index.reference.to_tensors()
    return {name: torch.from_numpy(value) for name, value in arrays.items()} | {
        _REFERENCE + name: value for name, value in reference.items()
    }


def _read_rows(data: np.ndarray, record: IndexRecord) -> pa.Table:
    if data.dtype != np.uint8:
        raise DinomedError("its manifest is missing")
    content = pa.py_buffer(data.tobytes())
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        if file.metadata.num_rows != record.count:  # a small file can declare any number of rows
            raise DinomedError(f"its manifest has {file.metadata.num_rows:,} rows for {record.count:,} vectors")
    table = read_parquet(content, "of its manifest")
    missing = sorted(FIXED.keys() - set(table.column_names))
    if missing:
        raise DinomedError(f"its manifest lacks {', '.join(missing)}")
    if any(name is None or leaves_root(name) for name in table["image"].to_pylist()):
        raise DinomedError("an image of its manifest lies outside its folder")
    return table


def _read_whitening(arrays: Arrays, record: IndexRecord) -> Whitening | None:
    if not record.whitened:
        return None
    mean, matrix = arrays["whitening.mean"], arrays["whitening.matrix"]
    if mean.ndim != 1 or matrix.shape != (len(mean), record.dimension):
        raise DinomedError("its whitening has another shape than its record says")
    return Whitening(mean, matrix)
