"""Which images of a manifest are trained on, and which are kept aside to look at."""

import numpy as np

from dinomed.datasets.manifest import Manifest
from dinomed.distributed import rank
from dinomed.errors import UsageError
from dinomed.log import logger
from dinomed.pretrain.config import PretrainConfig


def choose_images(manifest: Manifest, config: PretrainConfig) -> tuple[Manifest, Manifest]:
    """(images to train on, held-aside images for the PCA pictures). Validation and test images are never trained on,
    nor are images without a split whose patient or lesion is among them; the pictures are of validation images, or,
    without a split, of a few that are then not trained on."""
    count = config.run.pca_images
    if manifest.has("split"):
        splits = manifest.column("split")
        groups = manifest.groups()
        kept_back = {g for g, split in zip(groups, splits, strict=True) if split in ("val", "test")} - {None}
        usable = [i for i, split in enumerate(splits) if split in (None, "", "train")]
        train = manifest.take([i for i in usable if groups[i] not in kept_back])
        aside = manifest.take([i for i, split in enumerate(splits) if split == "val"])
        if len(train) < len(usable):
            logger.warning(f"left out: {len(usable) - len(train)} images whose group has others in val or test")
    else:
        # by content, so that adding images to a collection changes few of them
        order = sorted(range(len(manifest)), key=manifest.column("sha256").__getitem__)
        count = min(count, len(manifest) // 10)
        aside, train = manifest.take(sorted(order[:count])), manifest.take(sorted(order[count:]))
    if len(train) < config.run.batch_size:
        raise UsageError(
            f"{len(train)} training images in {manifest.called} are fewer than a batch of {config.run.batch_size}; "
            f"add images, or --set run.batch_size={max(len(train), 1)}"
        )
    chosen = np.linspace(0, len(aside) - 1, min(count, len(aside))).round().astype(int).tolist() if len(aside) else []
    return train, aside.take(chosen)


def fit_images(config: PretrainConfig, images: Manifest) -> PretrainConfig:
    """`config` as the images ask for it: `images.bits` 16 where it is not given and some have more than 8; what means
    something of red, green and blue only off where the backbone takes another number of channels.

    Raises:
        UsageError: the images have other channels than the backbone takes.
    """
    channels, changes = config.backbone.in_channels, dict[str, object]()
    if images.has("channels") and images.has("bits"):
        _check_channels(images, channels)
        if config.images.bits is None and max(images.column("bits")) > 8:
            changes["images"] = config.images.model_copy(update={"bits": 16})
            if rank() == 0:
                logger.info("some images have more than 8 bits: all are read with 16 (images.bits)")
    off = config.crops.needs_rgb()
    if channels != 3 and off:
        changes["crops"] = config.crops.without_rgb()
        if rank() == 0:
            logger.info(f"{', '.join(off)}: off, since they need RGB and the backbone takes {channels} channels")
    return config.model_copy(update=changes)


def _check_channels(images: Manifest, wanted: int) -> None:
    """An image has the channels of the backbone, or one (repeated); RGB becomes gray, and of several pages the first
    is taken, where 1 or 3 are wanted."""
    names, counts, modes = (images.column(name) for name in ("image", "channels", "mode"))
    for name, count, mode in zip(names, counts, modes, strict=True):
        is_array = " x " in mode
        known = wanted in (1, 3) and (not is_array or count == 3)
        if count not in (1, wanted) and not known:
            raise UsageError(
                f"{name} has {count} channels, and the backbone takes {wanted}: --set backbone.in_channels={count}, "
                f"with mean and std of {count} values"
            )
