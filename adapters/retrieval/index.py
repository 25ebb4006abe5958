"""An index on disk: `index.safetensors`, and beside it, for people, `index.json`.

`index.safetensors` alone is the index: vectors, whitening, graph, and the manifest of its images (Parquet, as bytes);
in its header stands the record, which names the hash of all of them. So one rename replaces all of an older index, and
damage is found before anything is searched. Nothing in it is pickled, and no file of faiss is read
(`dinomed.adapters.retrieval.engine`).

An index names its images, their groups and labels: that is what it is for. Handle it like the manifest.
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
from dinomed.errors import DinomedError, UsageError
from dinomed.features.neighbors import normalised, search_exactly
from dinomed.io.files import replacing, to_json, write_json
from dinomed.io.tensor_file import check_tensors, hash_tensors, parse_record, read_header, read_tensors, write_tensors
from dinomed.notice import RESEARCH_USE

FORMAT: Final = "dinomed.index/1"
INDEX_FILE, RECORD_FILE = "index.safetensors", "index.json"
_HEADER, _GRAPH, _ROWS = "index", "graph.", "manifest"
_MOST_FROM_GRAPH = 1000  # neighbours; for more the exact search is as fast
_BLOCK = 256  # queries at a time


class IndexRecord(Config):
    """What an index says of itself. `root` is the folder of its images, relative to the index."""

    format: Literal["dinomed.index/1"] = FORMAT
    purpose: str = RESEARCH_USE
    kind: Kind
    metric: Literal["cosine"] = "cosine"
    count: int = Field(ge=1)
    dimension: int = Field(ge=1)
    pooling: Pooling
    whitened: bool
    backbone: BackboneReference
    preprocessing: Preprocessing
    root: str
    manifest: str  # its fingerprint
    written: dict[str, Any]
    content_sha256: str


@dataclass(frozen=True)
class Found:
    """One result: the row of the index, and its cosine similarity to the query (-1 to 1)."""

    row: int
    similarity: float


@dataclass
class RetrievalIndex:
    """Vectors of the images of a manifest, float32 (N, D) of length 1, ready to be searched."""

    record: IndexRecord
    manifest: Manifest
    vectors: np.ndarray
    whitening: Whitening | None
    graph: Any = None  # of faiss; None: every search is exact

    def __len__(self) -> int:
        return len(self.vectors)

    def prepare(self, pooled: np.ndarray) -> np.ndarray:
        """Pooled features (N, C) as the index compares them: whitened if it is, of length 1."""
        return unit_vectors(pooled, self.whitening, "query")

    def search(
        self,
        queries: np.ndarray,
        k: int,
        *,
        allowed: np.ndarray | None = None,
        excluded: Sequence[np.ndarray] | None = None,
        exact: bool = False,
    ) -> list[list[Found]]:
        """The `k` most similar images of each query, best first: fewer only where there are no more.

        With `allowed` the search is exact, over these rows alone. Without, HNSW and IVF answer approximately; where
        what they find is not enough, the query is searched again, exactly.

        Args:
            queries: (Q, D), as `prepare` gives them.
            allowed: bool (N,), the rows that may be found.
            excluded: for each query rows (int64) that it must not find.
            exact: do not use the graph.

        Raises:
            UsageError: k below 1, or queries of another dimension.
            DinomedError: a query that is not finite.
        """
        if k < 1:
            raise UsageError(f"k is {k}; at least 1 result is needed")
        if queries.ndim != 2 or queries.shape[1] != self.record.dimension:
            raise UsageError(f"queries of {queries.shape[-1]} values against an index of {self.record.dimension}")
        queries = normalised(queries, "query")
        without = [np.empty(0, np.int64)] * len(queries) if excluded is None else list(excluded)
        asked = k + max((len(rows) for rows in without), default=0)
        rows = None if allowed is None else np.flatnonzero(allowed)
        found: list[list[Found]] = []
        approximate = self.graph is not None and rows is None and not exact and asked <= _MOST_FROM_GRAPH
        for start in range(0, len(queries), _BLOCK):
            part, gone = queries[start : start + _BLOCK], without[start : start + _BLOCK]
            if approximate:
                best = self._keep(*search_graph(self.graph, part, min(asked, len(self))), gone, k)
                again = [i for i, one in enumerate(best) if len(one) < min(k, len(self) - len(gone[i]))]
                if again:
                    exactly = self._exactly(part[again], [gone[i] for i in again], k, None)
                    for i, one in zip(again, exactly, strict=True):
                        best[i] = one
            else:
                best = self._exactly(part, gone, k, rows)
            found += best
        return found

    def _exactly(
        self, queries: np.ndarray, without: Sequence[np.ndarray], k: int, rows: np.ndarray | None
    ) -> list[list[Found]]:
        vectors = self.vectors if rows is None else self.vectors[rows]
        asked = k + max((len(gone) for gone in without), default=0)
        similarities, places = search_exactly(queries, vectors, asked)
        return self._keep(similarities, places if rows is None else rows[places], without, k)

    @staticmethod
    def _keep(similarities: np.ndarray, rows: np.ndarray, without: Sequence[np.ndarray], k: int) -> list[list[Found]]:
        kept = []
        for values, found, gone in zip(similarities, rows, without, strict=True):
            good = (found >= 0) & ~np.isin(found, gone)
            kept.append(
                [Found(int(row), float(value)) for row, value in zip(found[good][:k], values[good][:k], strict=True)]
            )
        return kept


def unit_vectors(pooled: np.ndarray, whitening: Whitening | None, kind: str = "vector") -> np.ndarray:
    """Float32 (N, D) of length 1. Raises `DinomedError` naming the first that is not finite."""
    plain = normalised(pooled, kind)
    return plain if whitening is None else normalised(whitening(plain), kind)


def write_index(index: RetrievalIndex, graph: Arrays, folder: Path) -> None:
    """Write the files; the index appears whole, or the older one stays."""
    tensors = _tensors(index, graph)
    data = index.record.model_dump(mode="json")
    (folder / RECORD_FILE).unlink(missing_ok=True)  # an older one must not stand beside the new index
    with replacing(folder / INDEX_FILE) as temporary:
        write_tensors(temporary, tensors, {_HEADER: to_json(data)})
    write_json(folder / RECORD_FILE, data)


def content_hash(index: RetrievalIndex, graph: Arrays) -> str:
    """What `content_sha256` of the record has to be."""
    return hash_tensors(_tensors(index, graph))


def read_index_record(folder: str | Path) -> IndexRecord:
    """The record of an index.

    Raises:
        UsageError: there is no index.
        DinomedError: it is damaged, or of another version.
    """
    folder = Path(folder)
    path = folder / INDEX_FILE
    if not path.is_file():
        told = "does not exist" if not folder.exists() else f"is no index (it holds no {INDEX_FILE})"
        raise UsageError(f"{folder} {told}; make one: dinomed index MANIFEST --backbone B -o {folder}")
    data = read_header(path, _HEADER, "index again")
    return parse_record(path, data, IndexRecord, FORMAT, "index again")


def read_index(folder: str | Path) -> RetrievalIndex:
    """An index with its vectors in memory. Its images need not be there: only `evidence` and the demo look at them.

    Raises:
        UsageError: there is no index.
        DinomedError: it is damaged.
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
        return RetrievalIndex(record, manifest, vectors, whitening, restore(record.kind, vectors, graph))
    except KeyError as error:
        raise DinomedError(f"{path} is damaged: no {error}; index again") from None
    except (DinomedError, TypeError, pa.ArrowException) as error:
        raise DinomedError(f"{path} is damaged: {str(error).splitlines()[0]}; index again") from None


def _tensors(index: RetrievalIndex, graph: Arrays) -> dict[str, torch.Tensor]:
    sink = pa.BufferOutputStream()
    pq.write_table(index.manifest.table.replace_schema_metadata(None), sink, compression="zstd")
    arrays: Arrays = {"vectors": index.vectors, _ROWS: np.frombuffer(sink.getvalue(), np.uint8).copy()}
    if index.whitening is not None:
        arrays |= {"whitening.mean": index.whitening.mean, "whitening.matrix": index.whitening.matrix}
    arrays |= {_GRAPH + name: value for name, value in graph.items()}
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def _read_rows(data: np.ndarray, record: IndexRecord) -> pa.Table:
    if data.dtype != np.uint8:
        raise DinomedError("its manifest is missing")
    with pq.ParquetFile(pa.BufferReader(data.tobytes())) as file:
        table = file.read()
    missing = sorted(FIXED.keys() - set(table.column_names))
    if missing or len(table) != record.count:
        raise DinomedError(f"its manifest has {len(table)} rows, and lacks {missing or 'nothing'}")
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
