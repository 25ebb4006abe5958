"""Frozen features, computed once: resumable at every shard, and never mistaken for those of something else."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.features.cache import DTYPES, LOCK_FILE, FeatureCache, FeatureKey, Kind, is_whole, write_shard
from dinomed.features.compute import Loaded, compute_features, load_images
from dinomed.io.output_folder import locked
from dinomed.log import logger
from dinomed.progress import Bar, bar

SHARD_SIZE = 256  # at most this much work is lost; 60 MB of patch tokens at 24x24 patches of 192 channels
BATCH_SIZE = 16  # larger ones are no faster on a CPU


def extract(
    backbone: FrozenBackbone,
    manifest: Manifest,
    *,
    cache: str | Path,
    blocks: Sequence[int] = (-1,),
    patches: bool = False,
    batch_size: int = BATCH_SIZE,
    shard_size: int = SHARD_SIZE,
    workers: int | None = None,
    description: str = "features",
) -> FeatureCache:
    """The features of all images of a manifest, computed or found in `cache`.

    Each set of features has its own folder below `cache`, named by its key. What an interrupted run left is used;
    shards that are damaged or of another key are computed again, with a warning.

    Args:
        backbone: its preprocessing decides the image size.
        blocks: 0 is the first, -1 the last.
        patches: also keep patch tokens.
        workers: threads that read images.

    Raises:
        UsageError: no images, or a block that the backbone has not.
        DinomedError: an image cannot be read (it could when the manifest was made), or the disk is full.
    """
    if not len(manifest):
        raise UsageError("no images to compute features of")
    key = FeatureKey(
        backbone=backbone.fingerprint,
        images=manifest.fingerprint,
        count=len(manifest),
        blocks=resolve_blocks(blocks, backbone.depth),
        patches=patches,
        shard_size=shard_size,
    )
    folder = Path(cache) / key.short
    with locked(folder, LOCK_FILE, wait=True):
        for leftover in folder.glob(".tmp-*"):
            leftover.unlink(missing_ok=True)
        missing = [shard for shard in range(key.num_shards) if not is_whole(folder, key, shard)]
        todo = [index for shard in missing for index in key.shard_range(shard)]
        if todo:
            with bar(description, len(manifest), start=len(manifest) - len(todo)) as progress:
                loaded = load_images(manifest.take(todo), backbone.preprocessing, workers)
                for shard in missing:
                    count = len(key.shard_range(shard))
                    write_shard(folder, key, shard, _one_shard(backbone, loaded, key, count, batch_size, progress))
    found = FeatureCache(folder, key)
    if todo and found.bytes > 100e6:
        logger.info(
            f"{found.bytes / 1e9:.1f} GB of features are kept in {folder}; remove it when they are no longer needed"
        )
    return found


def _one_shard(
    backbone: FrozenBackbone, loaded: Iterator[Loaded], key: FeatureKey, count: int, batch_size: int, progress: Bar
) -> dict[Kind, np.ndarray]:
    """Compute the next `count` images. Batches start anew in each shard, so that a resumed run forms the same ones."""
    parts: dict[Kind, list[np.ndarray]] = {kind: [] for kind in key.kinds}
    for start in range(0, count, batch_size):
        images = []
        for _ in range(min(batch_size, count - start)):
            one = next(loaded)
            if one.pixels is None:
                raise DinomedError(f"{one.error}; it could be read when the manifest was made: scan the folder again")
            images.append(one.pixels)
        features = compute_features(backbone, torch.stack(images), key.blocks, key.patches)
        for kind in key.kinds:
            parts[kind].append(getattr(features, kind).cpu().numpy().astype(DTYPES[kind]))
        progress.advance(len(images))
    return {kind: np.concatenate(arrays) for kind, arrays in parts.items()}


def resolve_blocks(blocks: Sequence[int], depth: int) -> tuple[int, ...]:
    """Blocks counted from 0. Raises a `UsageError` if the backbone has no such block."""
    wanted = tuple(block + depth if block < 0 else block for block in blocks)
    if not wanted or any(not 0 <= block < depth for block in wanted):
        raise UsageError(f"blocks {list(blocks)}: the backbone has blocks 0 to {depth - 1} (-1 is the last)")
    return wanted


def default_cache(data: str | Path) -> Path:
    """Where the features of a manifest (or a folder) are kept: `derm.parquet` -> `derm.features` beside it.

    A temporary folder where that place cannot be written.
    """
    data = Path(data)
    cache = data.parent / f"{data.stem if data.suffix else data.name}.features"
    if os.access(cache if cache.exists() else data.parent, os.W_OK):
        return cache
    fallback = Path(tempfile.gettempdir()) / f"dinomed-{os.getuid() if hasattr(os, 'getuid') else 'user'}" / cache.name
    logger.warning(f"{cache} cannot be written; features are kept in {fallback}")
    return fallback
