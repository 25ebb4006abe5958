"""Feature sources of a fit: features from the feature cache, or computed for every batch.

| settings | train | val | class |
|---|---|---|---|
| frozen backbone, no augmentation | computed once | computed once | `CachedFeatureSource` |
| augmentation | computed once for several copies of each image | computed once | `CopiesFeatureSource` |
| augmentation, `augment_copies: 0`, or a cheap backbone | every epoch | computed once | `LiveFeatureSource` |
| random windows | every epoch | not used: validation predicts by windows | `LiveFeatureSource` |
| tuned backbone | every epoch | every epoch | `LiveFeatureSource` |

A head that also reads images (`FeatureSpec.images`) gets them from `CopiesFeatureSource` or `LiveFeatureSource`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.fitting.augment import Augment, AugmentConfig
from dinomed.adapters.fitting.build import extract_blocks, extract_splits, gather
from dinomed.adapters.fitting.config import FitConfig, TrainConfig
from dinomed.adapters.fitting.data import Splits
from dinomed.adapters.fitting.image_batches import ImageBatches, TargetLookup
from dinomed.adapters.fitting.optimizers import BatchIndices, ParameterGroup, check_precision, half_precision
from dinomed.adapters.fitting.tune import LearningBackbone, TunedBackbone
from dinomed.adapters.fitting.windows import RandomWindows
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.features.cache import FeatureCache
from dinomed.features.compute import Features, compute_features
from dinomed.features.extract import extract, resolve_blocks
from dinomed.io.files import to_json
from dinomed.progress import bar

COPIED_IMAGES, MIN_COPIES, MAX_COPIES, MAX_CHEAP_COPIES = 2048, 2, 16, 80
"""Augmented copies of all images together, and limits for each image, if `augment_copies` is null. The last one is the
limit with a cheap backbone. 2,048 images at 192 px are 50 s on one core with the smallest backbone, and 1.2 GB of
features of four blocks. More copies of few images help: docs/results.md, "Label efficiency"."""
CHEAP_PRODUCTS = 5e9
"""Weights times patches of an image with a cheap backbone: a ViT-Ti/14 at 336 px has 3e9, a ViT-S/14 1.3e10."""
LIVE_PRODUCTS = 5e12
"""The same of all images of a fit, up to which each step computes new copies: about three minutes on one core."""
Gather = Callable[[Sequence[int]], Features]


@dataclass(frozen=True)
class TrainingBatch:
    """Features and targets of training images, on the device."""

    features: Features
    targets: Tensor


class FeatureSource(ABC):
    """Features of training and validation images.

    `cls` and `mean` are the class tokens and mean patch tokens of all training images without augmentation, float32
    (N, blocks * C). `backbone` is the backbone in its current state, which changes if it is tuned. Where a batch must
    have images of one grid of patches, `grids` and `val_grids` have the rows and columns of each image, (N, 2).
    """

    cls: np.ndarray
    mean: np.ndarray
    backbone: FrozenBackbone
    grids: np.ndarray | None = None
    val_grids: np.ndarray | None = None

    @abstractmethod
    def train(self, batches: Iterable[BatchIndices]) -> Iterator[TrainingBatch]:
        """Yield the features and targets of each batch."""

    @abstractmethod
    def val(self, rows: Sequence[int]) -> Features:
        """Return features of validation images, of the backbone in its current state."""

    def plain(self, rows: Sequence[int]) -> Features:
        """Return features of training images without augmentation; only of a source that computes features once."""
        raise NotImplementedError

    def model(self, adapter: Adapter) -> nn.Module:
        """Return the module to train: the head, with the backbone if it is tuned."""
        return adapter

    def groups(self, adapter: Adapter, config: FitConfig) -> list[ParameterGroup]:
        """Return the parameters to train with their learning rates."""
        learned = [p for p in adapter.parameters() if p.requires_grad]
        return [ParameterGroup(learned, config.learning_rate, config.warmup)]

    def tuned(self) -> TunedBackbone | None:
        """Return the tuned backbone; None if it is frozen."""
        return None


class CachedFeatureSource(FeatureSource):
    """Features from the feature cache.

    Args:
        gathers: functions from rows of train and of val to their features, on the device.
        pooled: class tokens and mean patch tokens of train.
        targets: function from rows of train to their targets.
        grids: grids of patches of train and of val, if the head reads patch tokens.
    """

    def __init__(
        self, backbone: FrozenBackbone, gathers: tuple[Gather, Gather], pooled: tuple[np.ndarray, np.ndarray],
        targets: TargetLookup, grids: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
    ) -> None:  # fmt: skip
        self.backbone = backbone
        self.grids, self.val_grids = grids
        self.gathers = gathers
        self.cls, self.mean = pooled
        self.targets = targets

    def train(self, batches: Iterable[BatchIndices]) -> Iterator[TrainingBatch]:
        for batch in batches:
            rows = batch.indices.tolist()
            features = self.gathers[0](rows)
            yield TrainingBatch(features, self.targets(rows).to(features.cls.device))

    def val(self, rows: Sequence[int]) -> Features:
        return self.gathers[1](rows)

    def plain(self, rows: Sequence[int]) -> Features:
        return self.gathers[0](rows)


class CopiesFeatureSource(FeatureSource):
    """Cached features of the training images and of augmented copies of them.

    Copy 0 is the image itself. In pass p over the images, image i uses copy (p + i) modulo the number of copies. So
    each batch has several copies, and each image goes through all of its copies. Targets are augmented when they are
    used.

    Args:
        copies: number of augmented copies of each image beside the image itself; 0 for none.
        augmentation: settings of the copies.
        shared: blocks of `extract_blocks`.
    """

    def __init__(
        self, backbone: FrozenBackbone, splits: Splits, adapter: Adapter, config: TrainConfig, cache: str | Path,
        targets: TargetLookup, copies: int, augmentation: AugmentConfig, shared: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.backbone, self.spec, self.seed = backbone, adapter.feature_spec, config.seed
        self.count, self.copies, self.targets = len(splits.train), copies + 1, targets
        reading = backbone.preprocessing
        self.augment = Augment(augmentation, reading.channels) if copies else None
        augment, count = self.augment, self.count

        def change(index: int, image: Tensor) -> Tensor:
            copy, row = divmod(index, count)
            if copy == 0 or augment is None:
                return image
            pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
            return torch.from_numpy(augment(pixels, None, config.seed, copy, row)[0]).permute(2, 0, 1)

        read = partial(extract_blocks, backbone, spec=self.spec, shared=shared, cache=cache)
        if copies:
            every = splits.train.take([row for _ in range(self.copies) for row in range(count)])
            changed: dict[str, Any] = {
                "transform": change,
                "transform_key": to_json([augmentation.model_dump(), config.seed, count]),
            }
            title = f"features of train and of {copies} augmented copies"
            self.cache = read(every, description=title, **changed)
        else:
            self.cache = read(splits.train, description="features of train")
        self.cls, self.mean = self.cache.cls[:count], self.cache.mean[:count]
        self.val_cache = read(splits.val, description="features of val")
        if self.spec.patches and self.cache.grids is not None:
            self.grids, self.val_grids = self.cache.grids[:count], self.val_cache.grids
        self.images = ImageBatches(splits.train, reading, targets, self.augment, config.seed)
        self.val_images = ImageBatches(splits.val, reading, lambda rows: torch.zeros(len(rows)), None, config.seed)

    def train(self, batches: Iterable[BatchIndices]) -> Iterator[TrainingBatch]:
        if self.spec.images:
            numbered = (self._copies_of(batch) for batch in batches)
            for rows, copies, pixels, maps in self.images.copies(numbered):
                features = replace(self._gather(rows, copies), images=pixels.to(self.backbone.device))
                yield TrainingBatch(features, maps.to(self.backbone.device))
            return
        for batch in batches:
            rows, copies = self._copies_of(batch)
            yield TrainingBatch(self._gather(rows, copies), self._targets(rows, copies).to(self.backbone.device))

    def val(self, rows: Sequence[int]) -> Features:
        features = gather(self.val_cache, rows, self.backbone.device)
        return self.val_images.add_images(features, rows) if self.spec.images else features

    def plain(self, rows: Sequence[int]) -> Features:
        features = self._gather(rows, [0] * len(rows))
        return self.images.add_images(features, rows) if self.spec.images else features

    def _copies_of(self, batch: BatchIndices) -> tuple[list[int], list[int]]:
        """Return the rows of a batch, and the copy of each."""
        rows = batch.indices.tolist()
        return rows, [(batch.pass_index + row) % self.copies for row in rows]

    def _gather(self, rows: Sequence[int], copies: Sequence[int]) -> Features:
        places = [copy * self.count + row for row, copy in zip(rows, copies, strict=True)]
        return gather(self.cache, places, self.backbone.device)

    def _targets(self, rows: Sequence[int], copies: Sequence[int]) -> Tensor:
        targets = self.targets(rows)
        if self.augment is None or targets.ndim < 4:  # labels do not move
            return targets
        moved = [
            self.augment.targets(maps, self.seed, copy, row) if copy else maps
            for maps, row, copy in zip(targets.numpy(), rows, copies, strict=True)
        ]
        return torch.from_numpy(np.stack(moved))


class LiveFeatureSource(FeatureSource):
    """Features computed for every batch: of augmented images, of random windows, or by a tuned backbone.

    With windows, `val` cannot be used: validation predicts by windows, as the bundle will.
    """

    def __init__(
        self, backbone: FrozenBackbone, splits: Splits, adapter: Adapter, config: TrainConfig, cache: str | Path,
        targets: TargetLookup, windows: RandomWindows | None = None,
    ) -> None:  # fmt: skip
        self.feature_spec, self.precision = adapter.feature_spec, config.fit.precision
        blocks, seed = resolve_blocks(self.feature_spec.blocks, backbone.depth), config.seed
        self.tuned_backbone = LearningBackbone(backbone, config.tune, blocks, seed) if config.tune.active else None
        self.backbone = self.tuned_backbone or backbone
        settings = config.augmentation(splits.train, backbone)
        augment = Augment(settings, backbone.preprocessing.channels) if settings.active else None
        self.train_images = ImageBatches(splits.train, backbone.preprocessing, targets, augment, seed, windows)
        if windows is None:
            pooled = extract(backbone, splits.train, cache=cache, blocks=blocks, description="pooled features of train")
            self.cls, self.mean, self.grids = pooled.cls, pooled.mean, pooled.grids
        else:
            self.cls, self.mean = self._pooled(backbone, len(splits.train), config.fit.batch_size)
        self.val_cache: FeatureCache | None = None
        if self.tuned_backbone is None and windows is None:
            self.val_cache = extract(
                backbone, splits.val, cache=cache, blocks=blocks, patches=self.feature_spec.patches,
                description="features of val",
            )  # fmt: skip
            self.val_grids = self.val_cache.grids
        elif self.grids is not None:
            self.val_grids = extract(backbone, splits.val, cache=cache, description="grids of val").grids
        no_targets = lambda rows: torch.zeros(len(rows))
        self.val_images = ImageBatches(splits.val, backbone.preprocessing, no_targets, None, seed)

    def _pooled(self, backbone: FrozenBackbone, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return pooled features of the windows of the first pass."""
        cls, mean = [], []
        with bar("pooled features of train", count) as progress:
            for pixels, _ in self.train_images.batches(
                BatchIndices(rows, 0) for rows in torch.arange(count).split(size)
            ):
                features = compute_features(backbone, pixels, self.feature_spec.blocks, False)
                cls.append(features.cls.cpu().numpy())
                mean.append(features.mean.cpu().numpy())
                progress.advance(len(pixels))
        return np.concatenate(cls), np.concatenate(mean)

    def train(self, batches: Iterable[BatchIndices]) -> Iterator[TrainingBatch]:
        for pixels, targets in self.train_images.batches(batches):
            with half_precision(self.precision, self.backbone.device):
                spec = self.feature_spec
                features = compute_features(self.backbone, pixels, spec.blocks, spec.patches, check=False)
            yield TrainingBatch(features, targets.to(self.backbone.device))

    def val(self, rows: Sequence[int]) -> Features:
        if self.val_cache is not None:
            features = gather(self.val_cache, rows, self.backbone.device)
            return self.val_images.add_images(features, rows) if self.feature_spec.images else features
        assert self.tuned_backbone is not None
        pixels, _ = self.val_images.load(BatchIndices(torch.tensor(list(rows)), 0))
        with torch.no_grad():
            return compute_features(self.tuned_backbone, pixels, self.feature_spec.blocks, self.feature_spec.patches)

    def model(self, adapter: Adapter) -> nn.Module:
        if self.tuned_backbone is None:
            return adapter
        return nn.ModuleDict({"head": adapter, "backbone": self.tuned_backbone.vit})

    def groups(self, adapter: Adapter, config: FitConfig) -> list[ParameterGroup]:
        return super().groups(adapter, config) + (tuned.groups(config.warmup) if (tuned := self.tuned_backbone) else [])

    def tuned(self) -> TunedBackbone | None:
        return None if self.tuned_backbone is None else self.tuned_backbone.freeze()


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
    batches = max(1, count // config.fit.batch_size)
    passes = max(config.fit.epochs, config.fit.min_steps / batches)
    cheap = passes * count * products <= LIVE_PRODUCTS and not shared
    return 0 if passes <= copies or cheap else copies
