"""One curation's means: the pile, the settings, a folder for what the stages compute, and who computes it."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dinomed.datasets.manifest import Manifest
from dinomed.log import logger
from dinomed.pretrain.curation.config import CurationConfig
from dinomed.pretrain.curation.pool import Pile
from dinomed.pretrain.curation.runtime.cache import Shelf, key_of
from dinomed.pretrain.curation.runtime.executor import Engine, Work
from dinomed.progress import bar

VECTORS = "vectors.npy"


@dataclass
class Job:
    """What every stage needs. `notes` are for the person who asked, in the order in which they came up."""

    pile: Pile
    config: CurationConfig
    folder: Path
    engine: Engine
    device: str = "auto"
    workers: int | None = None
    notes: list[str] = field(default_factory=list)
    searches: list[dict[str, Any]] = field(default_factory=list)
    _shelves: dict[str, tuple[Shelf, set[str]]] = field(default_factory=dict)

    def warn(self, note: str) -> None:
        """Say it now, and again in the report."""
        self.notes.append(note)
        logger.warning(note)

    def say_fewer(self, name: str, wanted: int, there: int) -> None:
        self.warn(f"{name} is {wanted:,}, and {there:,} images are left to choose from: {there:,} are used")

    def shelf(self, stage: str) -> Shelf:
        if stage not in self._shelves:
            self._shelves[stage] = (Shelf(self.folder / stage), set())
        return self._shelves[stage][0]

    def uses(self, stage: str, *names: str) -> None:
        """These pieces belong to the result."""
        self.shelf(stage)
        self._shelves[stage][1].update(names)

    def tidy(self) -> None:
        """Remove the pieces of earlier runs with other settings or images."""
        for shelf, names in self._shelves.values():
            shelf.tidy(names)

    def pieces(
        self, stage: str, items: Sequence[tuple[str, str, Any]], work: Work, description: str, size: Sequence[int]
    ) -> list[pa.Table]:
        """The tables of some pieces, each (name, key, item): found, or computed by the engine and kept at once.

        Args:
            size: of each piece, in what the progress counts.
        """
        shelf = self.shelf(stage)
        names = [f"{name}.arrow" for name, _, _ in items]
        self.uses(stage, *names)
        missing = [n for n, (_, key, _) in enumerate(items) if not shelf.has(names[n], key)]
        if missing:
            done = sum(size) - sum(size[n] for n in missing)
            with self.timed(stage, sum(size[n] for n in missing)), bar(description, sum(size), start=done) as progress:
                found = self.engine.map(work, (items[n][2] for n in missing))
                for n, table in zip(missing, found, strict=True):
                    shelf.put_table(names[n], items[n][1], table)
                    progress.advance(size[n])
        return [shelf.table(name) for name in names]

    def over_images(
        self, stage: str, settings: Any, manifest: Manifest, rows: np.ndarray, work: Work, *, prefix: str = "",
        description: str,
    ) -> pa.Table:  # fmt: skip
        """`work` over the images at `rows` (ascending): a table with a row for each of them.

        A piece is what there is of a block of `shard_size` rows, so that a change at the end of a pile, or of a few
        verdicts, leaves most pieces as they are.
        """
        digests = manifest.column("sha256")
        items, sizes = [], []
        for block, chosen in _blocks(rows, self.config.shard_size):
            own = chosen.tolist()
            key = key_of(stage, settings, [digests[row] for row in own])
            items.append((f"{prefix}{block:06d}", key, [str(manifest.path(row)) for row in own]))
            sizes.append(len(own))
        tables = self.pieces(stage, items, work, description, sizes)
        for table, size in zip(tables, sizes, strict=True):
            assert len(table) == size, (stage, len(table), size)
        return pa.concat_tables(tables)

    def matrix(
        self, stage: str, name: str, key: str, parts: Iterable[np.ndarray], shape: tuple[int, int]
    ) -> np.ndarray:
        """float32 `shape`, put together of parts in a file, and mapped from it."""
        shelf = self.shelf(stage)
        self.uses(stage, name)

        def write(path: Path) -> None:
            # headers of .npy are the same for the same shape; a row at a time would be slow, all at once too large
            out = np.lib.format.open_memmap(path, "w+", np.float32, shape)
            start = 0
            for part in parts:
                out[start : start + len(part)] = part
                start += len(part)
            assert start == shape[0], (start, shape)
            out.flush()

        if not shelf.has(name, key):
            shelf.put(name, key, write)
        return np.load(shelf.path(name), mmap_mode="r")

    @contextmanager
    def timed(self, stage: str, images: int) -> Iterator[None]:
        """Notes in `timings.jsonl` how long a stage took to compute something."""
        began = time.monotonic()
        yield
        line = {"stage": stage, "seconds": round(time.monotonic() - began, 3), "images": images}
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "timings.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _blocks(rows: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number, rows) of each block of so many rows in which there are any."""
    block = rows // size
    starts = np.flatnonzero(np.diff(block, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        yield int(block[start]), rows[start:end]
