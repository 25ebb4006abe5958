"""Features as a Parquet table, written shard by shard: no more than one shard is in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.tables import write_csv
from dinomed.errors import UsageError, did_you_mean
from dinomed.features.cache import LOCK_FILE, Kind, remove_caches
from dinomed.features.extract import extract
from dinomed.io.files import replacing
from dinomed.io.output_folder import check_writable, locked
from dinomed.log import logger
from dinomed.notice import RESEARCH_USE

TOKENS: dict[str, tuple[Kind, ...]] = {"cls": ("cls",), "mean": ("mean",), "cls+mean": ("cls", "mean")}
SHARD_SIZE = 1024
MARK = b"dinomed.features"


@dataclass(frozen=True)
class FeatureTable:
    """What was written."""

    images: int
    dimension: int
    unreadable_list: Path | None


def check_table_output(path: str | Path, tokens: str = "cls", *, overwrite: bool = False) -> None:
    """Refuse before the work what could not be written after it.

    Raises:
        UsageError: not a .parquet name, a folder, a file that is there (replaced only if it is a table of features and
            with `overwrite`), or unknown tokens.
        DinomedError: the folder cannot be written.
    """
    path = Path(path)
    if tokens not in TOKENS:
        raise UsageError(f"--tokens {tokens!r}{did_you_mean(tokens, TOKENS)}")
    if path.suffix.lower() != ".parquet" or path.is_dir():
        raise UsageError(f"output {path}: features are written to a .parquet file")
    if path.exists():
        if not overwrite:
            raise UsageError(f"output {path} exists already; add --overwrite to replace it")
        if not _is_ours(path):
            raise UsageError(f"output {path} is not overwritten, since it is no table of features")
    if (parts := _parts(path)).exists() and not parts.is_dir():
        raise UsageError(
            f"{parts} is a file; a folder of that name is needed while features are computed: move it away"
        )
    check_writable(path.parent)


def write_feature_table(
    backbone: FrozenBackbone,
    manifest: Manifest,
    path: str | Path,
    *,
    tokens: str = "cls",
    unreadable: Sequence[tuple[str, str]] = (),
    shard_size: int = SHARD_SIZE,
) -> FeatureTable:
    """Columns `image` (path relative to the root of the manifest) and `feature` (fixed-size list of float32), in the
    manifest's order. While it runs, shards are kept in ``OUT.parts``; a run that was interrupted goes on from them.
    They are removed in the end, and nothing else is that a folder of that name may hold.

    Args:
        tokens: a key of `TOKENS`: the class token, the mean patch token, or both beside each other; of the last block.
        unreadable: (path, reason) of files that were refused earlier; they are listed in ``OUT.unreadable.csv``.

    Raises:
        DinomedError: an image cannot be read, the disk is full, or another process writes this table.
    """
    path = Path(path)
    parts = _parts(path)
    with locked(parts, LOCK_FILE):
        try:
            count, dimension = _write_table(backbone, manifest, path, parts, tokens, shard_size)
            remove_caches(parts)
        finally:
            _remove_traces(parts)
    return FeatureTable(count, dimension, _list_unreadable(path, unreadable))


def _write_table(
    backbone: FrozenBackbone, manifest: Manifest, path: Path, parts: Path, tokens: str, shard_size: int
) -> tuple[int, int]:
    """The table, by way of shards in `parts`; how many rows and how wide."""
    cache = extract(backbone, manifest, cache=parts, shard_size=shard_size)
    kinds = TOKENS[tokens]
    dimension = backbone.embed_dim * len(kinds)
    note = {
        MARK: b"1",
        b"backbone": backbone.name.encode(),
        b"fingerprint": backbone.fingerprint.encode(),
        b"image_size": str(backbone.preprocessing.image_size).encode(),
        b"tokens": tokens.encode(),
        b"purpose": RESEARCH_USE.encode(),
    }
    kind = pa.list_(pa.float32(), dimension)
    schema = pa.schema([("image", pa.string()), ("feature", kind)], metadata=note)
    names = manifest.table["image"].combine_chunks()
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for shard in range(cache.key.num_shards):
            rows = cache.key.shard_range(shard)
            values = np.concatenate([cache.shard(shard, name) for name in kinds], axis=1)
            feature = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float32()), dimension)
            writer.write_table(pa.table([names.slice(rows.start, len(rows)), feature], schema=schema))
    return len(cache), dimension


def _remove_traces(parts: Path) -> None:
    """The lock, and what is empty, or was when nothing could be computed."""
    caches = [folder for folder in parts.iterdir() if folder.is_dir() and not folder.is_symlink()]
    for folder in caches:
        if [path.name for path in folder.iterdir()] == [LOCK_FILE]:
            (folder / LOCK_FILE).unlink()
            folder.rmdir()
    (parts / LOCK_FILE).unlink(missing_ok=True)
    if not any(parts.iterdir()):
        parts.rmdir()


def _parts(path: Path) -> Path:
    return path.with_suffix(".parts")


def _list_unreadable(path: Path, unreadable: Sequence[tuple[str, str]]) -> Path | None:
    listed = path.with_suffix(".unreadable.csv")
    if not unreadable:
        listed.unlink(missing_ok=True)  # of an earlier run
        return None
    write_csv(listed, ("path", "reason"), unreadable)
    logger.warning(f"{len(unreadable)} files could not be read; they are listed in {listed}")
    return listed


def _is_ours(path: Path) -> bool:
    try:
        return MARK in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False
