"""Selection of the images of a manifest to train on, and of the images held aside for PCA pictures."""

import numpy as np

from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.log import logger


def select_images(manifest: Manifest, batch_size: int, num_held_aside: int) -> tuple[Manifest, Manifest]:
    """Return the training images and the held-aside images.

    Validation and test images are never trained on, nor are images without a split whose group has images in val or
    test. The held-aside images are validation images; without a split they are a few images that are then not trained
    on (at most a tenth).

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
        # by content, so that adding images to a collection changes few of them
        order = sorted(range(len(manifest)), key=manifest.column("sha256").__getitem__)
        num_held_aside = min(num_held_aside, len(manifest) // 10)
        held_aside = manifest.take(sorted(order[:num_held_aside]))
        train = manifest.take(sorted(order[num_held_aside:]))
    if len(train) < batch_size:
        raise UsageError(
            f"{manifest.called} has {len(train)} training images, fewer than a batch of {batch_size}; "
            f"add images, or --set run.batch_size={max(len(train), 1)}"
        )
    count = min(num_held_aside, len(held_aside))
    return train, held_aside.take(np.linspace(0, len(held_aside) - 1, count).round().astype(int).tolist())


def check_channels(images: Manifest, in_channels: int) -> None:
    """Raise if the backbone cannot take an image.

    An image has the channels of the backbone, or one, which is repeated. If the backbone takes 1 or 3 channels, RGB
    becomes gray, and the first page of a picture of several pages is used.

    Raises:
        UsageError: an image has another number of channels.
    """
    names, counts, modes = (images.column(name) for name in ("image", "channels", "mode"))
    for name, count, mode in zip(names, counts, modes, strict=True):
        is_array = " x " in mode
        is_converted = in_channels in (1, 3) and (not is_array or count == 3)
        if count not in (1, in_channels) and not is_converted:
            raise UsageError(
                f"{name} has {count} channels, and the backbone takes {in_channels}: "
                f"--set backbone.in_channels={count}, with mean and std of {count} values"
            )
