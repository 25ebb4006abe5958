"""Feature extraction: the features of a manifest, computed once and kept in the feature cache."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.cache import DTYPES, LOCK_FILE, FeatureCache, FeatureKey, Kind, is_valid_shard, write_shard
from dinomed.features.compute import compute_features
from dinomed.features.loading import BATCH_SIZE, LoadedImage, Transform, load_images, stack_pixels
from dinomed.io.artifacts import ArtifactFolder, hash_key
from dinomed.io.output_folder import locked
from dinomed.io.prefetch import batched
from dinomed.log import logger
from dinomed.progress import Bar, bar

SHARD_SIZE = (
    256  # images; an interruption loses at most one shard. 60 MB of patch tokens at 24x24 patches, 192 channels
)


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
    transform: Transform | None = None,
    transform_key: str = "",
) -> FeatureCache:
    """Compute the features of all images of a manifest, or read them from the cache.

    The features of each key have their own folder in `cache`. The shards of an interrupted call are used; shards that
    are damaged or have another key are computed again.

    Args:
        backbone: its preprocessing decides the image size.
        cache: folder of the feature cache; see `default_cache`.
        blocks: blocks whose tokens are concatenated: 0 is the first, -1 the last.
        patches: keep patch tokens too.
        batch_size: images in a forward pass.
        shard_size: images in a shard.
        workers: threads that read images; None chooses by the number of processors.
        description: label of the progress bar.
        transform: change of the resized images, such as an augmentation.
        transform_key: everything that the transform depends on.

    Raises:
        UsageError: the manifest has no images, or the backbone has no such block.
        DinomedError: an image cannot be read although it could when the manifest was written, or the disk is full.
    """
    if not len(manifest):
        raise UsageError("no images to compute features of")
    key = FeatureKey(
        backbone=backbone.fingerprint,
        images=hash_key([manifest.fingerprint, transform_key]) if transform else manifest.fingerprint,
        count=len(manifest),
        blocks=resolve_blocks(blocks, backbone.depth),
        patches=patches,
        shard_size=shard_size,
    )
    folder = Path(cache) / key.short
    with locked(folder, LOCK_FILE, wait=True):
        artifacts = ArtifactFolder(folder)
        missing = [shard for shard in range(key.num_shards) if not is_valid_shard(artifacts, key, shard)]
        todo = [index for shard in missing for index in key.shard_range(shard)]
        logger.debug(f"feature cache {folder}: {len(manifest) - len(todo)} of {len(manifest)} images are there")
        if todo:
            with bar(description, len(manifest), start=len(manifest) - len(todo)) as progress:
                changed = None if transform is None else lambda index, image: transform(todo[index], image)
                images = load_images(manifest.take(todo), backbone.preprocessing, workers, changed)
                for shard in missing:
                    shard_images = islice(images, len(key.shard_range(shard)))
                    write_shard(
                        artifacts, key, shard, _compute_shard(backbone, shard_images, key, batch_size, progress)
                    )
    features = FeatureCache(folder, key)
    if todo and features.bytes > 100e6:
        logger.info(
            f"{features.bytes / 1e9:.1f} GB of features are kept in {folder}; remove it when they are no longer needed"
        )
    return features


def _compute_shard(
    backbone: FrozenBackbone, images: Iterator[LoadedImage], key: FeatureKey, batch_size: int, progress: Bar
) -> dict[Kind, np.ndarray]:
    """Compute the features of one shard. Each shard starts a new batch, so that a resumed run has the same batches."""
    parts: dict[Kind, list[np.ndarray]] = {kind: [] for kind in key.kinds}
    for batch in batched(images, batch_size):
        features = compute_features(backbone, stack_pixels(batch), key.blocks, key.patches)
        for kind in key.kinds:
            parts[kind].append(getattr(features, kind).cpu().numpy().astype(DTYPES[kind]))
        progress.advance(len(batch))
    return {kind: np.concatenate(arrays) for kind, arrays in parts.items()}


def resolve_blocks(blocks: Sequence[int], depth: int) -> tuple[int, ...]:
    """Return block numbers counted from 0, where negative ones count from the end.

    Raises:
        UsageError: the backbone, with `depth` blocks, has no such block, or `blocks` is empty.
    """
    resolved = tuple(block + depth if block < 0 else block for block in blocks)
    if not resolved or any(not 0 <= block < depth for block in resolved):
        raise UsageError(f"blocks {list(blocks)}: the backbone has blocks 0 to {depth - 1} (-1 is the last)")
    return resolved


def default_cache(data: str | Path) -> Path:
    """Return the folder of the feature cache of a manifest or an image folder: ``derm.features`` beside
    ``derm.parquet``, or a temporary folder where that place cannot be written."""
    data = Path(data)
    cache = data.parent / f"{data.stem if data.suffix else data.name}.features"
    if os.access(cache if cache.exists() else data.parent, os.W_OK):
        return cache
    fallback = Path(tempfile.gettempdir()) / f"dinomed-{os.getuid() if hasattr(os, 'getuid') else 'user'}" / cache.name
    logger.warning(f"{cache} cannot be written; features are kept in {fallback}")
    return fallback
