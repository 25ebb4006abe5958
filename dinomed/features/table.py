"""Export of features as a Parquet table, written shard by shard, with one shard in memory."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.tables import write_csv
from dinomed.errors import DinomedError, UsageError, did_you_mean
from dinomed.features.cache import Kind, remove_caches
from dinomed.features.extract import check_usable, extract_usable
from dinomed.io.files import replacing
from dinomed.io.output_folder import LOCK_FILE, check_writable, locked
from dinomed.log import logger
from dinomed.notice import RESEARCH_USE

TOKENS: dict[str, tuple[Kind, ...]] = {"cls": ("cls",), "mean": ("mean",), "cls+mean": ("cls", "mean")}
SHARD_SIZE = 1024
MARK = b"dinomed.features"
SHARDS = b"dinomed.shards"  # name of the folder in `OUT.parts` of the shards from which a table was made


@dataclass(frozen=True)
class FeatureTable:
    """Size of a written table: number of images and dimension, and the list of unreadable files, if there is one."""

    images: int
    dimension: int
    unreadable: int
    unreadable_list: Path | None


def check_table_output(path: str | Path, tokens: str = "cls", *, overwrite: bool = False) -> None:
    """Check before the work that the table can be written.

    Raises:
        UsageError: the path is a folder or does not end in .parquet, the file exists (it is replaced only with
            `overwrite` and if it is a table of features), or the tokens are unknown.
        DinomedError: the folder cannot be written.
    """
    path = Path(path)
    if tokens not in TOKENS:
        raise UsageError(f"`tokens={tokens!r}`{did_you_mean(tokens, TOKENS)}")
    if path.suffix.lower() != ".parquet" or path.is_dir():
        raise UsageError(f"output {path}: features are written to a .parquet file")
    if path.exists():
        if not overwrite:
            _remove_used_shards(path)
            raise UsageError(f"output {path} already exists; use `overwrite=True`")
        if not _is_feature_table(path):
            raise UsageError(f"output {path} is no table of features; choose another file")
    if (parts := _parts(path)).exists() and not parts.is_dir():
        raise UsageError(
            f"{parts} is a file, but a folder with this name is needed while features are computed; move the file"
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
    """Compute features and write them as a Parquet table, in the order of the manifest.

    Its columns are `image` (path relative to the root of the manifest), `sha256` (as in the manifest) and `feature`
    (fixed-size list of float32).
    Shards are kept in ``OUT.parts`` until the table is complete; an interrupted run continues from them. At the end
    they are removed; other files in that folder stay.

    Args:
        tokens: key of `TOKENS`: the class token, the mean patch token, or both concatenated, of the last block.
        unreadable: (path, reason) of files that could not be scanned; they are listed in ``OUT.unreadable.csv``, as are
            images that cannot be decoded or for which the backbone gives no finite features.

    Raises:
        UsageError: no image can be used.
        DinomedError: the backbone gives no finite features at all, the disk is full, or another process writes the same
            table.
    """
    path = Path(path)
    parts = _parts(path)
    with locked(parts):
        try:
            usable, dimension = _write_table(backbone, manifest, path, parts, tokens, shard_size)
            remove_caches(parts)
        finally:
            _remove_traces(parts)
    failed = [*unreadable, *usable.unreadable[len(manifest.unreadable) :]]
    return FeatureTable(len(usable), dimension, len(failed), _list_unreadable(path, failed))


def _write_table(
    backbone: FrozenBackbone, manifest: Manifest, path: Path, parts: Path, tokens: str, shard_size: int
) -> tuple[Manifest, int]:
    """Write the table from shards in `parts`; return the manifest of its rows and the dimension."""
    features, manifest = extract_usable(backbone, manifest, cache=parts, shard_size=shard_size)
    check_usable(manifest)
    kinds = TOKENS[tokens]
    dimension = backbone.embed_dim * len(kinds)
    note = {
        MARK: b"1",
        b"backbone": backbone.name.encode(),
        b"fingerprint": backbone.fingerprint.encode(),
        b"image_size": str(backbone.preprocessing.image_size).encode(),
        b"aspect": backbone.preprocessing.aspect.encode(),
        b"tokens": tokens.encode(),
        b"purpose": RESEARCH_USE.encode(),
        SHARDS: features.folder.name.encode(),
    }
    kind = pa.list_(pa.float32(), dimension)
    schema = pa.schema([("image", pa.string()), ("sha256", pa.string()), ("feature", kind)], metadata=note)
    names, contents = (manifest.table[column].combine_chunks() for column in ("image", "sha256"))
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        written = 0
        for shard in features.shards:
            values = np.concatenate([features.shard(shard, name) for name in kinds], axis=1)
            feature = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float32()), dimension)
            part = slice(written, written + len(values))
            writer.write_table(pa.table([names[part], contents[part], feature], schema=schema))
            written += len(values)
    return manifest, dimension


def _remove_used_shards(path: Path) -> None:
    """Remove the shards from which an existing table was made: a process that was killed at its end has left them."""
    parts = _parts(path)
    name = _read_metadata(path).get(SHARDS, b"").decode(errors="replace")
    if parts.is_dir() and name and (parts / name).is_dir():
        with contextlib.suppress(DinomedError), locked(parts):  # not while another process computes
            remove_caches(parts, only=name)
            _remove_traces(parts)


def _remove_traces(parts: Path) -> None:
    """Remove the lock, and folders that are empty or hold only a lock."""
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
    list_path = path.with_suffix(".unreadable.csv")
    if not unreadable:
        list_path.unlink(missing_ok=True)  # of an earlier run
        return None
    write_csv(list_path, ("path", "reason"), unreadable)
    logger.warning(f"{len(unreadable)} files could not be read; they are listed in {list_path}")
    return list_path


def _is_feature_table(path: Path) -> bool:
    return MARK in _read_metadata(path)


def _read_metadata(path: Path) -> dict[bytes, bytes]:
    try:
        return pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError):
        return {}
