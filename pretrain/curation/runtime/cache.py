"""Cache of the curation stages: Arrow tables and memory-mapped matrices as artifacts with a key and a checksum."""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dinomed.io.artifacts import ArtifactFolder, hash_key

FORMAT = "dinomed.stage/3"
"""Part of every key. It is raised when code that decides (thresholds, alignment, descriptors) changes, so that
artifacts of earlier versions are computed again. Version 2: the neighbourhoods of aligned points are compared.
Version 3: backbones read images as in their pretraining."""
_SUFFIXES = (".arrow", ".npy", ".safetensors", ".faiss")


def stage_key(*parts: Any) -> str:
    """Return the key of an artifact of this version, 64 hex digits, from values that JSON can hold."""
    return hash_key(FORMAT, *parts)


class StageCache(ArtifactFolder):
    """Artifacts of one stage. Each is one file and has the name of this file."""

    def put(self, name: str, key: str, write: Callable[[Path], Any]) -> None:
        """Write an artifact; `write` writes the file at the path that it is given."""
        self.write(name, key, {name: write})

    def put_table(self, name: str, key: str, table: pa.Table) -> None:
        """Write a table as an artifact."""
        self.put(name, key, lambda path: write_table(path, table))

    def read_table(self, name: str) -> pa.Table:
        """Return the table of an artifact, memory-mapped."""
        return read_table(self.path(name))

    def compute_table(self, name: str, key: str, compute: Callable[[], pa.Table]) -> pa.Table:
        """Return the table of an artifact; compute and write it if it is not valid."""
        if not self.is_valid(name, key):
            self.put_table(name, key, compute())
        return self.read_table(name)

    def compute_matrix(self, name: str, key: str, blocks: Iterable[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
        """Return a matrix, float32 of `shape`, memory-mapped; write it from blocks of rows if it is not valid."""

        def write(path: Path) -> None:
            # block by block: single rows would be slow, and the whole matrix may not fit into memory
            out = np.lib.format.open_memmap(path, "w+", np.float32, shape)
            start = 0
            for block in blocks:
                out[start : start + len(block)] = block
                start += len(block)
            assert start == shape[0], (start, shape)
            out.flush()

        if not self.is_valid(name, key):
            self.put(name, key, write)
        return np.load(self.path(name), mmap_mode="r")

    def keep_only(self, names: Collection[str]) -> None:
        """Remove the artifacts that are not in `names`: those of a larger pool or of other settings."""
        self.remove_others(names, _SUFFIXES)


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow IPC file, uncompressed: equal tables give equal bytes, and reading needs no copy."""
    table = table.combine_chunks()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def read_table(path: Path) -> pa.Table:
    """Read an Arrow IPC file, memory-mapped."""
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def vectors_to_column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """Return vectors, float32 (n, D), as an Arrow column."""
    flat = np.ascontiguousarray(vectors, np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])


def column_to_vectors(column: pa.ChunkedArray) -> np.ndarray:
    """Return the vectors of a column that `vectors_to_column` made, float32 (n, D)."""
    dimension = column.type.list_size
    parts = [chunk.flatten().to_numpy().reshape(-1, dimension) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.empty((0, dimension), np.float32)
