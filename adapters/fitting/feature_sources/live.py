"""Feature source that computes features for every batch."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.fitting.augment import Augment
from dinomed.adapters.fitting.build import gather
from dinomed.adapters.fitting.config import FitConfig, TrainConfig
from dinomed.adapters.fitting.data import Splits
from dinomed.adapters.fitting.feature_sources.source import FeatureSource, TrainingBatch
from dinomed.adapters.fitting.image_batches import ImageBatches, TargetLookup
from dinomed.adapters.fitting.optimizers import BatchIndices, ParameterGroup, half_precision
from dinomed.adapters.fitting.tune import LearningBackbone, TunedBackbone
from dinomed.adapters.fitting.windows import RandomWindows
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.features.cache import FeatureCache
from dinomed.features.compute import Features, compute_features
from dinomed.features.extract import extract, resolve_blocks
from dinomed.progress import bar


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
