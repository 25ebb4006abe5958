"""Feature extraction: the features of a manifest, computed once and kept in the feature cache."""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.vit import resolve_indices
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.scan.findings import nothing_in
from dinomed.errors import DinomedError, UsageError
from dinomed.features.cache import DTYPES, FeatureCache, FeatureKey, Kind, is_valid_shard, read_time, write_shard
from dinomed.features.compute import compute_features
from dinomed.features.finite import CAUSE, NotFiniteError, compute_finite
from dinomed.features.loading import (
    BATCH_SIZE,
    LoadedImage,
    Transform,
    is_unchanged,
    load_images,
    shape_of,
    stack_pixels,
)
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
    skip_unusable: bool = False,
) -> FeatureCache:
    """Compute the features of all images of a manifest, or read them from the cache.

    The features of each key have their own folder in `cache`. The shards of an interrupted call are used; shards that
    are damaged or have another key are computed again. An image that has changed since the scan is treated alike with
    and without the cache: it is an error, or left out with `skip_unusable`.

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
        skip_unusable: leave out the images that cannot be read or for which the backbone gives no finite features, and
            list them in `FeatureCache.failed`; the next call tries them again. By default they are an error.

    Raises:
        UsageError: the manifest has no images, or the backbone has no such block.
        DinomedError: an image cannot be used, the backbone gives no finite features for any of the first images, or
            the disk is full.
    """
    if not len(manifest):
        raise UsageError(f"{manifest.called} has no images")
    key = FeatureKey(
        backbone=backbone.fingerprint,
        images=hash_key([manifest.fingerprint, transform_key]) if transform else manifest.fingerprint,
        count=len(manifest),
        blocks=resolve_blocks(blocks, backbone.depth),
        patches=patches,
        shard_size=shard_size,
        rectangles=backbone.preprocessing.aspect == "keep",
    )
    folder = Path(cache) / key.short
    failed: dict[int, str] = {}  # row of the manifest -> reason
    with locked(folder, wait=True):
        artifacts = ArtifactFolder(folder)

        def is_usable(shard: int) -> bool:
            return is_valid_shard(artifacts, key, shard) and is_unchanged(
                manifest.take(key.shard_range(shard)), read_time(artifacts, shard), workers
            )

        missing = [shard for shard in range(key.num_shards) if not is_usable(shard)]
        started = time.time_ns()
        todo = [index for shard in missing for index in key.shard_range(shard)]
        logger.debug(f"feature cache {folder}: {len(manifest) - len(todo)} of {len(manifest)} images are there")
        if todo:
            with bar(description, len(manifest), start=len(manifest) - len(todo)) as progress:
                changed = None if transform is None else lambda index, image: transform(todo[index], image)
                images = load_images(manifest.take(todo), backbone.preprocessing, workers, changed)
                for shard in missing:
                    rows = key.shard_range(shard)
                    loaded = islice(images, len(rows))
                    arrays, unreadable, not_finite = _compute_shard(
                        backbone, loaded, key, batch_size, progress, skip_unusable
                    )
                    if len(not_finite) == len(rows) and len(missing) == key.num_shards and shard == 0:
                        raise DinomedError(f"backbone {backbone.name}: {not_finite[0]} for all images; {CAUSE}")
                    reasons = {rows[place]: reason for place, reason in sorted((unreadable | not_finite).items())}
                    if arrays:
                        write_shard(artifacts, key, shard, arrays, reasons, started)
                    failed |= reasons
    if failed and not skip_unusable:
        row, reason = next(iter(failed.items()))
        more = f" for this and {len(failed) - 1} more images" if len(failed) > 1 else ""
        raise DinomedError(f"{manifest.column('image')[row]}: {reason}{more}; {CAUSE}")
    features = FeatureCache(folder, key, failed)
    if todo and features.bytes > 100e6:
        logger.info(
            f"{features.bytes / 1e9:.1f} GB of features are kept in {folder}; remove it when they are no longer needed"
        )
    return features


def _compute_shard(
    backbone: FrozenBackbone,
    images: Iterator[LoadedImage],
    key: FeatureKey,
    batch_size: int,
    progress: Bar,
    skip_unreadable: bool,
) -> tuple[dict[Kind, np.ndarray], dict[int, str], dict[int, str]]:
    """Compute the features of one shard. Each shard starts a new batch, so that a resumed run has the same batches.

    Returns:
        The arrays of the images that have features, empty if none has; and place in the shard -> reason of the
        unreadable images, and of those for which the backbone gives no finite features.
    """
    parts: dict[Kind, list[np.ndarray]] = {kind: [] for kind in key.kinds}
    unreadable, not_finite = dict[int, str](), dict[int, str]()
    start = 0
    for batch in batched(images, batch_size, shape_of):
        places = [place for place, image in enumerate(batch) if image.error is None or not skip_unreadable]
        unreadable |= {start + place: image.error.reason for place, image in enumerate(batch) if image.error}
        if places:
            pixels = stack_pixels([batch[place] for place in places])
            _, arrays, reasons = compute_finite(partial(_compute, backbone, pixels, key), len(places))
            if arrays is not None:
                for kind in key.kinds:
                    parts[kind].append(arrays[kind])
            not_finite |= {start + places[row]: reason for row, reason in reasons.items()}
        start += len(batch)
        progress.advance(len(batch))
    return {kind: _concatenate(arrays) for kind, arrays in parts.items() if arrays}, unreadable, not_finite


def _concatenate(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate features (n, C, ...) whose further sides may differ; zeros fill them to the longest ones."""
    shape = np.max([array.shape[1:] for array in arrays], axis=0)
    return np.concatenate(
        [
            np.pad(array, [(0, 0), *((0, most - side) for most, side in zip(shape, array.shape[1:], strict=True))])
            for array in arrays
        ]
    )


def _compute(backbone: FrozenBackbone, pixels: Tensor, key: FeatureKey, rows: list[int]) -> dict[Kind, np.ndarray]:
    """Compute the features of some rows of a batch in the types in which they are kept.

    Raises:
        NotFiniteError: the features of an image are not finite, or become infinite in float16.
    """
    features = compute_features(backbone, pixels[rows], key.blocks, key.patches)
    arrays: dict[Kind, np.ndarray] = {}
    for kind in key.kinds:
        if kind == "grid":
            arrays[kind] = np.tile(np.array(backbone.grid((pixels.shape[-2], pixels.shape[-1]))), (len(rows), 1))
            continue
        with np.errstate(over="ignore"):  # checked below
            arrays[kind] = getattr(features, kind).cpu().numpy().astype(DTYPES[kind])
        good = np.isfinite(arrays[kind]).reshape(len(rows), -1).all(axis=1)
        if not good.all():
            raise NotFiniteError(np.flatnonzero(~good).tolist(), f"{kind} tokens in {arrays[kind].dtype}")
    return arrays


def extract_usable(backbone: FrozenBackbone, manifest: Manifest, **options: Any) -> tuple[FeatureCache, Manifest]:
    """Compute features as `extract` does, without the images that cannot be used.

    Returns:
        The features, and the manifest of their images, which may be empty; its `unreadable` lists the other images too.

    Raises:
        UsageError, DinomedError: as `extract`.
    """
    features = extract(backbone, manifest, skip_unusable=True, **options)
    return features, without_rows(manifest, features.failed)


def without_rows(manifest: Manifest, failed: Mapping[int, str]) -> Manifest:
    """Return the manifest without the rows of `failed`, row -> reason, which its `unreadable` then lists."""
    names = manifest.column("image")
    kept = [row for row in range(len(manifest)) if row not in failed]
    unreadable = [(names[row], reason) for row, reason in failed.items()]
    return replace(manifest.take(kept), unreadable=(*manifest.unreadable, *unreadable))


def check_usable(manifest: Manifest) -> None:
    """Raise if no image of a manifest of `extract_usable` is left.

    Raises:
        UsageError: there is none; the message contains the first reason.
    """
    if not len(manifest):
        raise UsageError(nothing_in(manifest.called, manifest.unreadable))


def resolve_blocks(blocks: Sequence[int], depth: int) -> tuple[int, ...]:
    """Return block numbers counted from 0, where negative ones count from the end.

    Raises:
        UsageError: the backbone, with `depth` blocks, has no such block, or `blocks` is empty.
    """
    try:
        return tuple(resolve_indices(blocks, depth))
    except ValueError as error:
        raise UsageError(f"{error} (-1 is the last)") from None


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
