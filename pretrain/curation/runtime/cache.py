"""What a stage has computed, in pieces on disk that are trusted only with the right key and checksum.

A piece is a file and, written after it, ``NAME.json`` with its key (a hash over all that it depends on) and the
SHA-256 of the file. A process that is killed leaves whole pieces and at most one without its JSON, which is made again;
so is a piece that is damaged, or that was made from other images or settings.
"""

import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dinomed.errors import DinomedError
from dinomed.io.files import read_json, replacing, sha256_file, write_json
from dinomed.log import logger

FORMAT = "dinomed.stage/2"
"""Part of every key: raised when code that decides (thresholds, alignment, descriptors) changes, so that pieces of
before are made again. 2: points that align have to be alike between them."""


def key_of(*parts: Any) -> str:
    """64 hex digits over values that JSON can hold."""
    return hashlib.sha256(json.dumps([FORMAT, *parts], sort_keys=True).encode()).hexdigest()


class Shelf:
    """The pieces of one stage, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for leftover in folder.glob(".tmp-*"):
            leftover.unlink(missing_ok=True)

    def path(self, name: str) -> Path:
        return self.folder / name

    def has(self, name: str, key: str) -> bool:
        """Whether a piece is there, of this key, and unchanged; says why if it is there and is not."""
        record_path = self._record(name)
        if not record_path.is_file():
            return False
        path = self.path(name)
        try:
            record = read_json(record_path)
            if not isinstance(record, dict) or record.get("key") != key:
                return False  # of other images or settings: nothing to warn of
            if (
                not path.is_file()
                or path.stat().st_size != record.get("bytes")
                or sha256_file(path) != record["sha256"]
            ):
                raise DinomedError("it is not what was written")
        except (DinomedError, OSError, KeyError) as error:
            logger.warning(f"{path} is damaged ({error}); it is made again")
            return False
        return True

    def put(self, name: str, key: str, write: Callable[[Path], Any]) -> None:
        """`write` makes the file at the path that it is given."""
        path = self.path(name)
        self._record(name).unlink(missing_ok=True)  # never a new file beside an old record
        with replacing(path) as temporary:
            write(temporary)
        write_json(self._record(name), {"key": key, "bytes": path.stat().st_size, "sha256": sha256_file(path)})

    def put_table(self, name: str, key: str, table: pa.Table) -> None:
        self.put(name, key, lambda path: write_table(path, table))

    def key_of(self, name: str) -> str:
        """The key of a piece that is there."""
        return str(read_json(self._record(name))["key"])

    def table(self, name: str) -> pa.Table:
        return read_table(self.path(name))

    def make(self, name: str, key: str, compute: Callable[[], pa.Table]) -> pa.Table:
        """The table called `name`: as it was kept, or computed and kept."""
        if not self.has(name, key):
            self.put_table(name, key, compute())
        return self.table(name)

    def tidy(self, names: Collection[str]) -> None:
        """Remove pieces that no longer belong: of a larger pile, or of another setting."""
        kept = {*names, *(self._record(name).name for name in names)}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name not in kept and path.suffix in (".arrow", ".npy", ".json", ".safetensors", ".faiss"):
                path.unlink()

    def _record(self, name: str) -> Path:
        return self.path(name).with_name(name + ".json")


def write_table(path: Path, table: pa.Table) -> None:
    """Arrow IPC, uncompressed: the same bytes for the same table, and mapped without a copy."""
    table = table.combine_chunks()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def read_table(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def vectors_to_column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """float32 (n, D) as an Arrow column."""
    flat = np.ascontiguousarray(vectors, np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])


def column_to_vectors(column: pa.ChunkedArray) -> np.ndarray:
    """Back from `vectors_to_column`: float32 (n, D)."""
    dimension = column.type.list_size
    parts = [chunk.flatten().to_numpy().reshape(-1, dimension) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.empty((0, dimension), np.float32)
