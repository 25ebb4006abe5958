"""Selection of the training images, and of the held-aside images for PCA pictures."""

import numpy as np

from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.log import logger

NEARLY_ALL = 0.9


def select_images(manifest: Manifest, batch_size: int, num_held_aside: int) -> tuple[Manifest, Manifest]:
    """Return the training images and the held-aside images.

    Validation and test images are never used for training. Images of a group that has images in val or test are not
    used either. The held-aside images are validation images. If the manifest has no split column, at most a tenth of
    all images is held aside, and these images are not used for training.

    Raises:
        UsageError: there are fewer training images than `batch_size`.
    """
    if manifest.has("split"):
        splits, groups = manifest.column("split"), manifest.groups()
        held_out_groups = {g for g, split in zip(groups, splits, strict=True) if split in ("val", "test")} - {None}
        candidates = [i for i, split in enumerate(splits) if split in (None, "", "train")]
        train = manifest.take([i for i in candidates if groups[i] not in held_out_groups])
        held_aside = manifest.take([i for i, split in enumerate(splits) if split == "val"])
        if len(train) < len(candidates):
            logger.warning(f"left out {len(candidates) - len(train)} images whose group has images in val or test")
    else:
        # sorted by checksum: if images are added to the manifest, most of the held-aside images stay the same
        order = sorted(range(len(manifest)), key=manifest.column("sha256").__getitem__)
        num_held_aside = min(num_held_aside, len(manifest) // 10)
        held_aside = manifest.take(sorted(order[:num_held_aside]))
        train = manifest.take(sorted(order[num_held_aside:]))
    if not len(train):
        splits = sorted(set(manifest.column("split")) - {None, ""}) if manifest.has("split") else []
        others = f" (splits: {', '.join(splits)})" if splits else ""
        raise UsageError(f"{manifest.called} has no training images{others}; give images of the split train")
    if len(train) < batch_size:
        raise UsageError(
            f"{manifest.called} has {len(train)} training images, fewer than a batch of {batch_size}; "
            f"add images, or `settings=['run.batch_size={max(len(train), 1)}']`"
        )
    count = min(num_held_aside, len(held_aside))
    return train, held_aside.take(np.linspace(0, len(held_aside) - 1, count).round().astype(int).tolist())


def warn_small_images(images: Manifest, size: int, patch: int) -> None:
    """Warn if nearly all images have fewer pixels than a global view, so that all their views are enlarged.

    Args:
        images: the training images.
        size: side of the global views, px.
        patch: side of a patch, px; the suggested size is a multiple of it.
    """
    sides = np.sqrt(np.multiply(images.column("width"), images.column("height"), dtype=np.float64))
    share, median = float((sides < size).mean()), float(np.median(sides))
    if share > NEARLY_ALL:
        logger.warning(
            f"crops.global_size is {size} px, and {share:.0%} of the {len(images):,} training images have fewer pixels "
            f"(at the median as many as a square of {median:.0f} px): their views are always enlarged; for views of "
            "their own size add "
            f"`settings=['crops.global_size={max(int(median) // patch, 1) * patch}']`"
        )


def fits_channels(mode: str, count: int, in_channels: int) -> bool:
    """Return whether an image of a mode and `count` channels fits a backbone; `check_channels` has the rule."""
    is_array = " x " in mode
    is_converted = in_channels in (1, 3) and (not is_array or count == 3)
    return count in (1, in_channels) or is_converted


def check_channels(images: Manifest, in_channels: int) -> None:
    """Raise if the number of channels of an image does not fit the backbone.

    An image fits if it has as many channels as the backbone, or one channel, which is repeated. If the backbone has 1
    or 3 input channels, RGB images are converted, and only the first page of a file with several pages is used.

    Raises:
        UsageError: an image does not fit.
    """
    names, counts, modes = (images.column(name) for name in ("image", "channels", "mode"))
    for name, count, mode in zip(names, counts, modes, strict=True):
        if not fits_channels(mode, count, in_channels):
            raise UsageError(
                f"{name} has {count} channels, but the backbone takes {in_channels}; "
                f"use `settings=['backbone.in_channels={count}']`, with mean and std of {count} values"
            )
