"""Choice of the feature source of a fit: features from the feature cache, or computed for every batch.

| settings | train | val | class |
|---|---|---|---|
| frozen backbone, no augmentation | computed once | computed once | `CachedFeatureSource` |
| augmentation | computed once for several copies of each image | computed once | `CopiesFeatureSource` |
| augmentation, `augment_copies: 0`, or a cheap backbone | every epoch | computed once | `LiveFeatureSource` |
| random windows | every epoch | not used: validation predicts by windows | `LiveFeatureSource` |
| tuned backbone | every epoch | every epoch | `LiveFeatureSource` |

A head that also reads images (`FeatureSpec.images`) gets them from `CopiesFeatureSource` or `LiveFeatureSource`.
"""

from collections.abc import Sequence
from functools import partial
from math import ceil
from pathlib import Path

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.fitting.build import extract_splits, gather
from dinomed.adapters.fitting.config import TrainConfig
from dinomed.adapters.fitting.data import Splits
from dinomed.adapters.fitting.feature_sources.cached import CachedFeatureSource, CopiesFeatureSource
from dinomed.adapters.fitting.feature_sources.live import LiveFeatureSource
from dinomed.adapters.fitting.feature_sources.source import FeatureSource
from dinomed.adapters.fitting.image_batches import TargetLookup
from dinomed.adapters.fitting.optimizers import check_precision, count_batches, count_passes
from dinomed.adapters.fitting.windows import RandomWindows
from dinomed.backbones.frozen import FrozenBackbone

COPIED_IMAGES, MIN_COPIES, MAX_COPIES, MAX_CHEAP_COPIES = 2048, 2, 16, 80
"""Augmented copies of all images together, and limits for each image, if `augment_copies` is null. The last one is the
limit with a cheap backbone. 2,048 images at 192 px are 50 s on one core with the smallest backbone, and 1.2 GB of
features of four blocks. More copies of few images help: docs/results.md, "Label efficiency"."""
CHEAP_PRODUCTS = 5e9
"""Weights times patches of an image with a cheap backbone: a ViT-Ti/14 at 336 px has 3e9, a ViT-S/14 1.3e10."""
LIVE_PRODUCTS = 5e12
"""The same of all images of a fit, up to which each step computes new copies: about three minutes on one core."""
PRODUCTS_PER_SECOND = LIVE_PRODUCTS / 180


def open_feature_source(
    backbone: FrozenBackbone, splits: Splits, adapter: Adapter, config: TrainConfig, cache: str | Path,
    targets: TargetLookup, windows: RandomWindows | None = None, shared: Sequence[int] = (),
) -> FeatureSource:  # fmt: skip
    """Build the feature source that the settings need.

    Args:
        targets: function from rows of train to their targets: a value, or a map (planes, side, side).
        windows: random windows with their own targets, instead of whole images.
        shared: blocks that are extracted together where features are computed once; see `extract_blocks`.

    Raises:
        UsageError: settings that this backbone or device does not support.
    """
    check_precision(config.fit, backbone.device)
    copies = 0 if windows else count_copies(config, len(splits.train), count_products(backbone), bool(shared))
    if config.live and not copies:
        return LiveFeatureSource(backbone, splits, adapter, config, cache, targets, windows)
    if copies or adapter.feature_spec.images:
        augmentation = config.augmentation(splits.train, backbone)
        return CopiesFeatureSource(backbone, splits, adapter, config, cache, targets, copies, augmentation, shared)
    train, val = extract_splits(backbone, splits, adapter, cache, shared)
    gathers = (partial(gather, train, device=backbone.device), partial(gather, val, device=backbone.device))
    grids = (train.grids, val.grids) if adapter.feature_spec.patches else (None, None)
    return CachedFeatureSource(backbone, gathers, (train.cls, train.mean), targets, grids)


def count_products(backbone: FrozenBackbone) -> int:
    """Return the weights times the patches of an image, a measure of the cost of an image in the backbone."""
    patches = (backbone.preprocessing.image_size // backbone.patch_size) ** 2
    return patches * sum(parameter.numel() for parameter in backbone.model.parameters())


def count_copies(config: TrainConfig, count: int, products: float, shared: bool = False) -> int:
    """Return the number of augmented copies of each training image; 0 if images are augmented anew in every epoch.

    With `augment_copies` null it is `COPIED_IMAGES` divided by the number of images, within limits. It is 0 if the fit
    has no more passes over the images than that, since copies would then save nothing, or if the backbone is cheap.
    For a fit with `seconds` it is never 0, which would spend them on the backbone, and except for `MIN_COPIES` the
    copies are no more than one core computes in these seconds.

    Args:
        config: settings of the fit.
        count: number of training images.
        products: of `count_products`.
        shared: whether other heads read the same copies.
    """
    if not config.augment.active or config.tune.active:
        return 0
    if config.augment_copies is not None:
        return config.augment_copies
    most = MAX_CHEAP_COPIES if products <= CHEAP_PRODUCTS else MAX_COPIES
    copies = min(max(ceil(COPIED_IMAGES / count), MIN_COPIES), most)
    if config.fit.seconds:
        affordable = int(config.fit.seconds * PRODUCTS_PER_SECOND / (count * products))
        return max(min(copies, affordable), MIN_COPIES)
    passes = config.fit.epochs * count_passes(config.fit, count_batches(count, config.fit.batch_size))
    cheap = passes * count * products <= LIVE_PRODUCTS and not shared
    return 0 if passes <= copies or cheap else copies
