"""Feature sources of a fit: features from the feature cache, or computed for every batch.

| settings | train | val | class |
|---|---|---|---|
| frozen backbone, no augmentation | computed once | computed once | `CachedFeatureSource` |
| augmentation | every epoch | computed once | `LiveFeatureSource` |
| random windows | every epoch | not used: validation predicts by windows | `LiveFeatureSource` |
| tuned backbone | every epoch | every epoch | `LiveFeatureSource` |
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.fitting.augment import Augment
from dinomed.adapters.fitting.build import extract_splits, gather
from dinomed.adapters.fitting.config import FitConfig, TrainConfig
from dinomed.adapters.fitting.data import Splits
from dinomed.adapters.fitting.image_batches import ImageBatches, TargetLookup
from dinomed.adapters.fitting.optimizers import BatchIndices, ParameterGroup
from dinomed.adapters.fitting.tune import LearningBackbone, Tuned
from dinomed.adapters.fitting.windows import RandomWindows
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.errors import UsageError
from dinomed.features.cache import FeatureCache
from dinomed.features.compute import Features, compute_features
from dinomed.features.extract import extract, resolve_blocks
from dinomed.progress import bar

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
Gather = Callable[[Sequence[int]], Features]


@dataclass(frozen=True)
class TrainingBatch:
    """Features and targets of training images, on the device."""

    features: Features
    targets: Tensor


class FeatureSource(ABC):
    """Features of training and validation images.

    `cls` and `mean` are the class tokens and mean patch tokens of all training images without augmentation, float32
    (N, blocks * C). `backbone` is the backbone in its current state, which changes if it is tuned.
    """

    cls: np.ndarray
    mean: np.ndarray
    backbone: FrozenBackbone

    @abstractmethod
    def train(self, batches: Iterable[BatchIndices]) -> Iterator[TrainingBatch]:
        """Yield the features and targets of each batch."""

    @abstractmethod
    def val(self, rows: Sequence[int]) -> Features:
        """Return features of validation images, of the backbone in its current state."""

    def model(self, adapter: Adapter) -> nn.Module:
        """Return the module to train: the head, with the backbone if it is tuned."""
        return adapter

    def groups(self, adapter: Adapter, config: FitConfig) -> list[ParameterGroup]:
        """Return the parameters to train with their learning rates."""
        return [ParameterGroup([p for p in adapter.parameters() if p.requires_grad], config.learning_rate)]

    def tuned(self) -> Tuned | None:
        """Return the tuned backbone; None if it is frozen."""
        return None


class CachedFeatureSource(FeatureSource):
    """Features from the feature cache.

    Args:
        gathers: functions from rows of train and of val to their features, on the device.
        pooled: class tokens and mean patch tokens of train.
        targets: function from rows of train to their targets.
    """

    def __init__(
        self,
        backbone: FrozenBackbone,
        gathers: tuple[Gather, Gather],
        pooled: tuple[np.ndarray, np.ndarray],
        targets: TargetLookup,
    ) -> None:
        self.backbone = backbone
        self._train, self._val = gathers
        self.cls, self.mean = pooled
        self.targets = targets

    def train(self, batches: Iterable[BatchIndices]) -> Iterator[TrainingBatch]:
        for batch in batches:
            rows = batch.indices.tolist()
            features = self._train(rows)
            yield TrainingBatch(features, self.targets(rows).to(features.cls.device))

    def val(self, rows: Sequence[int]) -> Features:
        return self._val(rows)


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
        settings = config.augmentation
        augment = Augment(settings, backbone.preprocessing.channels) if settings.active else None
        self.train_images = ImageBatches(splits.train, backbone.preprocessing, targets, augment, seed, windows)
        if windows is None:
            pooled = extract(backbone, splits.train, cache=cache, blocks=blocks, description="pooled features of train")
            self.cls, self.mean = pooled.cls, pooled.mean
        else:
            self.cls, self.mean = self._pooled(backbone, len(splits.train), config.fit.batch_size)
        self.val_cache: FeatureCache | None = None
        if self.tuned_backbone is None and windows is None:
            self.val_cache = extract(
                backbone, splits.val, cache=cache, blocks=blocks, patches=self.feature_spec.patches,
                description="features of val",
            )  # fmt: skip
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
                features = compute_features(self.backbone, pixels, self.feature_spec.blocks, self.feature_spec.patches)
            yield TrainingBatch(features, targets.to(self.backbone.device))

    def val(self, rows: Sequence[int]) -> Features:
        if self.val_cache is not None:
            return gather(self.val_cache, rows, self.backbone.device)
        assert self.tuned_backbone is not None
        pixels, _ = self.val_images.load(BatchIndices(torch.tensor(list(rows)), 0))
        with torch.no_grad():
            return compute_features(self.tuned_backbone, pixels, self.feature_spec.blocks, self.feature_spec.patches)

    def model(self, adapter: Adapter) -> nn.Module:
        if self.tuned_backbone is None:
            return adapter
        return nn.ModuleDict({"head": adapter, "backbone": self.tuned_backbone.vit})

    def groups(self, adapter: Adapter, config: FitConfig) -> list[ParameterGroup]:
        return super().groups(adapter, config) + ([] if self.tuned_backbone is None else self.tuned_backbone.groups())

    def tuned(self) -> Tuned | None:
        return None if self.tuned_backbone is None else self.tuned_backbone.result()


def open_feature_source(
    backbone: FrozenBackbone,
    splits: Splits,
    adapter: Adapter,
    config: TrainConfig,
    cache: str | Path,
    targets: TargetLookup,
    windows: RandomWindows | None = None,
) -> FeatureSource:
    """Build the feature source that the settings need.

    Args:
        targets: function from rows of train to their targets: a value, or a map (planes, side, side).
        windows: random windows with their own targets, instead of whole images.

    Raises:
        UsageError: settings that this backbone or device does not support.
    """
    check_precision(config.fit, backbone.device)
    if config.live:
        return LiveFeatureSource(backbone, splits, adapter, config, cache, targets, windows)
    train, val = extract_splits(backbone, splits, adapter, cache)
    gathers = (partial(gather, train, device=backbone.device), partial(gather, val, device=backbone.device))
    return CachedFeatureSource(backbone, gathers, (train.cls, train.mean), targets)


def check_precision(config: FitConfig, device: torch.device) -> None:
    """Raise a `UsageError` for half precision on a device other than CUDA, where it would only be slower."""
    if config.precision != "float32" and device.type != "cuda":
        raise UsageError(
            f"fit.precision {config.precision} is for CUDA, the device is {device.type}; use float32, or --device cuda"
        )


def half_precision(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return an autocast context for half precision, else a context without effect."""
    if precision not in HALF:
        return nullcontext()
    autocast: AbstractContextManager[None] = torch.autocast(device.type, HALF[precision])
    return autocast


def in_precision(forward: Callable[[Features], Tensor], precision: str, device: torch.device) -> Callable[..., Tensor]:
    """Return `forward` as a function that computes in `half_precision` and returns float32."""

    def run(features: Features) -> Tensor:
        with half_precision(precision, device):
            return forward(features).float()

    return run
