"""Which images of a manifest are trained on, and which are kept aside to look at."""

import numpy as np

from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.pretrain.config import PretrainConfig
from dinomed.progress import warn


def choose_images(manifest: Manifest, config: PretrainConfig) -> tuple[Manifest, Manifest]:
    """(images to train on, held-aside images for the PCA pictures). Validation and test images are never trained on,
    nor are images without a split whose patient or lesion is among them; the pictures are of validation images, or,
    without a split, of a few that are then not trained on."""
    count = config.run.pca_images
    if manifest.has("split"):
        splits = manifest.column("split")
        groups = manifest.column("group") if manifest.has("group") else [None] * len(manifest)
        kept_back = {g for g, split in zip(groups, splits, strict=True) if split in ("val", "test")} - {None}
        usable = [i for i, split in enumerate(splits) if split in (None, "", "train")]
        train = manifest.take([i for i in usable if groups[i] not in kept_back])
        aside = manifest.take([i for i, split in enumerate(splits) if split == "val"])
        if len(train) < len(usable):
            warn(f"left out: {len(usable) - len(train)} images whose group has others in val or test")
    else:
        # by content, so that adding images to a collection changes few of them
        order = sorted(range(len(manifest)), key=manifest.column("sha256").__getitem__)
        count = min(count, len(manifest) // 10)
        aside, train = manifest.take(sorted(order[:count])), manifest.take(sorted(order[count:]))
    if len(train) < config.run.batch_size:
        raise UsageError(
            f"{len(train)} training images are fewer than a batch of {config.run.batch_size}; "
            f"add images, or --set run.batch_size={max(len(train), 1)}"
        )
    chosen = np.linspace(0, len(aside) - 1, min(count, len(aside))).round().astype(int).tolist() if len(aside) else []
    return train, aside.take(chosen)
