"""Runs the work of a stage shard by shard and caches the results."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dinomed.datasets.manifest import Manifest
from dinomed.pretrain.curation.runtime.cache import StageCache, stage_key
from dinomed.pretrain.curation.runtime.executor import Executor, LocalExecutor, Work
from dinomed.progress import bar


@dataclass(kw_only=True)
class StageRunner:
    """Computes stages with an executor and caches their tables in ``folder/STAGE``; without a folder nothing is cached.

    Args:
        device: of networks.
        workers: threads or processes; None for one per processor.
        shard_size: images per cached table.
    """

    folder: Path | None
    executor: Executor = field(default_factory=LocalExecutor)
    device: str = "auto"
    workers: int | None = None
    shard_size: int = 512
    _caches: dict[str, StageCache] = field(default_factory=dict)
    _used: dict[str, set[str]] = field(default_factory=dict)

    def cache(self, stage: str, *names: str) -> StageCache:
        """Return the cache of a stage, and note that the artifacts `names` belong to the result."""
        assert self.folder is not None
        if stage not in self._caches:
            self._caches[stage] = StageCache(self.folder / stage)
        self._used.setdefault(stage, set()).update(names)
        return self._caches[stage]

    def remove_unused(self) -> None:
        """Remove the artifacts of earlier runs with other settings or images."""
        for stage, cache in self._caches.items():
            cache.keep_only(self._used[stage])

    def compute_tables(
        self, stage: str, items: Sequence[tuple[str, str, Any]], work: Work, description: str, sizes: Sequence[int]
    ) -> list[pa.Table]:
        """Return one table per item, from the cache or computed and cached at once.

        Args:
            items: (name, key, argument of the work) of each table.
            sizes: size of each item, for the progress bar.
        """
        names = [f"{name}.arrow" for name, _, _ in items]
        cache = None if self.folder is None else self.cache(stage, *names)
        missing = [n for n, (_, key, _) in enumerate(items) if cache is None or not cache.is_valid(names[n], key)]
        computed: dict[int, pa.Table] = {}
        if missing:
            size = sum(sizes[n] for n in missing)
            with self.timed(stage, size), bar(description, sum(sizes), start=sum(sizes) - size) as progress:
                tables = self.executor.map(work, (items[n][2] for n in missing))
                for n, table in zip(missing, tables, strict=True):
                    if cache is None:
                        computed[n] = table
                    else:
                        cache.put_table(names[n], items[n][1], table)
                    progress.advance(sizes[n])
        return [computed[n] if cache is None else cache.read_table(name) for n, name in enumerate(names)]

    def map_images(
        self, stage: str, settings: Any, manifest: Manifest, rows: np.ndarray, work: Work, *, prefix: str = "",
        description: str,
    ) -> pa.Table:  # fmt: skip
        """Compute `work` for the images at `rows` and return a table with one row per image.

        A shard holds the selected images of a block of `shard_size` rows. If images are added at the end of the
        manifest, or a few decisions change, most shards stay valid.

        Args:
            settings: everything that the result depends on, beside the images; JSON can hold it.
            rows: ascending.
            work: maps a list of paths to a table.
            prefix: of the names of the shards.
        """
        digests = manifest.column("sha256")
        items, sizes = [], []
        for block, block_rows in _blocks(rows, self.shard_size):
            shard = block_rows.tolist()
            key = stage_key(stage, settings, [digests[row] for row in shard])
            items.append((f"{prefix}{block:06d}", key, [str(manifest.path(row)) for row in shard]))
            sizes.append(len(shard))
        tables = self.compute_tables(stage, items, work, description, sizes)
        for table, size in zip(tables, sizes, strict=True):
            assert len(table) == size, (stage, len(table), size)
        return pa.concat_tables(tables)

    def compute_matrix(
        self, stage: str, name: str, key: str, blocks: Iterable[np.ndarray], shape: tuple[int, int]
    ) -> np.ndarray:
        """Return a matrix from the cache of a stage; see `StageCache.compute_matrix`."""
        return self.cache(stage, name).compute_matrix(name, key, blocks, shape)

    @contextmanager
    def timed(self, stage: str, images: int) -> Iterator[None]:
        """Enclose a computation. A subclass can record its time."""
        yield


def _blocks(rows: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number, rows) of each block of `size` rows that holds at least one of `rows`."""
    block = rows // size
    starts = np.flatnonzero(np.diff(block, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        yield int(block[start]), rows[start:end]
