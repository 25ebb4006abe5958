"""Passes of images through the backbone in a fit, counted before it, by the rules of the feature sources.

The rules are those of `dinomed.adapters.fitting.feature_sources.choose`.
"""

from collections.abc import Iterator
from typing import Any

from dinomed.adapters.adapter import FeatureSpec
from dinomed.adapters.fitting.feature_sources.choose import count_copies, count_products
from dinomed.adapters.fitting.head_fit import HeadFit
from dinomed.adapters.fitting.optimizers import count_batches, count_passes
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.preprocessing import rectangle_size
from dinomed.datasets.manifest import Manifest
from dinomed.features.extract import SHARD_SIZE, resolve_blocks


def copies_of_fit(fit: HeadFit) -> int:
    """Return the number of augmented copies of each training image; 0 without them."""
    if not fit.feature_parts():
        return 0
    return count_copies(fit.config, len(fit.splits.train), count_products(fit.backbone), bool(fit.shared_blocks))


def images_per_epoch(fit: HeadFit, *, measured: bool = True) -> int:
    """Return the images that pass through the backbone in every epoch: of train, and of val if its features change.

    Without `measured` nothing is measured on val, so that none of its images pass.
    """
    if not fit.config.live or copies_of_fit(fit):
        return 0
    changes = measured and (fit.config.tune.active or not fit.feature_parts())
    train, settings = len(fit.splits.train), fit.config.fit
    passes = count_passes(settings, count_batches(train, settings.batch_size))
    return passes * train + (len(fit.splits.val) if changes else 0)


def list_passes(fit: HeadFit, spec: FeatureSpec, pool: Manifest | None) -> Iterator[tuple[Any, tuple[int, int]]]:
    """Yield a key for each set of features that is computed once and kept, with its images and its bytes.

    Args:
        fit: a fit whose rows are selected.
        spec: the features that its head reads.
        pool: images of all folds of a cross-validation, whose features are computed together.
    """
    copies, live = copies_of_fit(fit), images_per_epoch(fit) > 0
    for backbone, train, val in fit.feature_parts():
        blocks = tuple(fit.shared_blocks or resolve_blocks(spec.blocks, backbone.depth))
        size = backbone.preprocessing.image_size
        parts = [(train, copies + 1, spec.patches and not live)]
        parts += [] if fit.config.tune.active else [(val, 1, spec.patches)]
        if pool is not None and not live and not copies and not spec.images:
            parts = [(pool, 1, spec.patches)]
        for rows, times, patches in parts:
            images = len(rows) * times
            numbers = 8 * images  # bytes of a channel: class and mean tokens are float32, patch tokens float16
            numbers += 2 * _count_patches(rows, times, backbone) if patches else 0
            grids = 4 * images if backbone.preprocessing.aspect == "keep" else 0
            size_on_disk = len(blocks) * backbone.embed_dim * numbers + grids
            yield (rows.fingerprint, size, blocks, patches, times), (images, size_on_disk)


def _count_patches(rows: Manifest, times: int, backbone: FrozenBackbone) -> int:
    """Return the patches that are kept of the images, `times` each; a shard has the largest grid of its images."""
    size, patch = backbone.preprocessing.image_size, backbone.patch_size
    if backbone.preprocessing.aspect != "keep":
        return len(rows) * times * (size // patch) ** 2
    shapes = zip(rows.column("height"), rows.column("width"), strict=True)
    sides = [rectangle_size(shape, size, patch) for shape in shapes] * times
    shards = (sides[start : start + SHARD_SIZE] for start in range(0, len(sides), SHARD_SIZE))
    return sum(
        len(shard) * (max(height for height, _ in shard) // patch) * (max(width for _, width in shard) // patch)
        for shard in shards
    )
