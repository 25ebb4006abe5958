"""Feature extraction: the features of a manifest, computed once and kept in the feature cache."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.features.cache import DTYPES, LOCK_FILE, FeatureCache, FeatureKey, Kind, is_valid_shard, write_shard
from dinomed.features.compute import compute_features
from dinomed.features.finite import CAUSE, NotFiniteError, NotFiniteImagesError, compute_finite
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
        NotFiniteImagesError: the backbone gives no finite features for some images; the shards without them are kept.
        DinomedError: an image cannot be read although it could when the manifest was written, the backbone gives no
            finite features for any of the first images, or the disk is full.
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
                failed: dict[int, str] = {}  # row of the manifest -> reason
                for shard in missing:
                    rows = key.shard_range(shard)
                    arrays, reasons = _compute_shard(backbone, islice(images, len(rows)), key, batch_size, progress)
                    failed |= {rows[place]: reason for place, reason in reasons.items()}
                    if len(failed) == len(rows) and len(missing) == key.num_shards and shard == 0:
                        raise DinomedError(f"backbone {backbone.name}: {failed[rows[0]]} for all images; {CAUSE}")
                    if not reasons:
                        write_shard(artifacts, key, shard, arrays)
            if failed:
                names = manifest.column("image")
                raise NotFiniteImagesError([(names[row], reason) for row, reason in failed.items()])
    features = FeatureCache(folder, key)
    if todo and features.bytes > 100e6:
        logger.info(
            f"{features.bytes / 1e9:.1f} GB of features are kept in {folder}; remove it when they are no longer needed"
        )
    return features


def _compute_shard(
    backbone: FrozenBackbone, images: Iterator[LoadedImage], key: FeatureKey, batch_size: int, progress: Bar
) -> tuple[dict[Kind, np.ndarray], dict[int, str]]:
    """Compute the features of one shard. Each shard starts a new batch, so that a resumed run has the same batches.

    Returns:
        The arrays without the images for which the backbone gives no finite features, and place in the shard -> reason
        of those.
    """
    parts: dict[Kind, list[np.ndarray]] = {kind: [] for kind in key.kinds}
    failed: dict[int, str] = {}
    start = 0
    for batch in batched(images, batch_size):
        pixels = stack_pixels(batch)
        _, arrays, reasons = compute_finite(partial(_compute, backbone, pixels, key), len(batch))
        if arrays is not None:
            for kind in key.kinds:
                parts[kind].append(arrays[kind])
        failed |= {start + row: reason for row, reason in reasons.items()}
        start += len(batch)
        progress.advance(len(batch))
    return {kind: np.concatenate(arrays) for kind, arrays in parts.items() if arrays}, failed


def _compute(backbone: FrozenBackbone, pixels: Tensor, key: FeatureKey, rows: list[int]) -> dict[Kind, np.ndarray]:
    """Compute the features of some rows of a batch in the types in which they are kept.

    Raises:
        NotFiniteError: the features of an image are not finite, or become infinite in float16.
    """
    features = compute_features(backbone, pixels[rows], key.blocks, key.patches)
    arrays: dict[Kind, np.ndarray] = {}
    for kind in key.kinds:
        with np.errstate(over="ignore"):  # checked below
            arrays[kind] = getattr(features, kind).cpu().numpy().astype(DTYPES[kind])
        good = np.isfinite(arrays[kind]).reshape(len(rows), -1).all(axis=1)
        if not good.all():
            raise NotFiniteError(np.flatnonzero(~good).tolist(), f"{kind} tokens in {arrays[kind].dtype}")
    return arrays


def extract_finite(backbone: FrozenBackbone, manifest: Manifest, **options: Any) -> tuple[FeatureCache, Manifest]:
    """Compute features as `extract` does, without the images for which the backbone gives no finite ones.

    Returns:
        The features, and the manifest of their images; its `unreadable` names the other images too.

    Raises:
        UsageError, DinomedError: as `extract`.
    """
    while True:
        try:
            return extract(backbone, manifest, **options), manifest
        except NotFiniteImagesError as error:
            manifest = without_images(manifest, error.failed)


def without_images(manifest: Manifest, failed: Sequence[tuple[str, str]]) -> Manifest:
    """Return the manifest without the images of `failed`, (path, reason), which its `unreadable` then names."""
    gone = {name for name, _ in failed}
    rows = [row for row, name in enumerate(manifest.column("image")) if name not in gone]
    return replace(manifest.take(rows), unreadable=(*manifest.unreadable, *failed))


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
