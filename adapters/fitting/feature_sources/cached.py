"""Feature sources that read the feature cache: of the images themselves, or of augmented copies of them too."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.fitting.augment import Augment, AugmentConfig
from dinomed.adapters.fitting.build import extract_blocks, gather
from dinomed.adapters.fitting.config import TrainConfig
from dinomed.adapters.fitting.data import Splits
from dinomed.adapters.fitting.feature_sources.source import FeatureSource, TrainingBatch
from dinomed.adapters.fitting.image_batches import ImageBatches, TargetLookup
from dinomed.adapters.fitting.optimizers import BatchIndices
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.features.compute import Features
from dinomed.io.files import to_json

Gather = Callable[[Sequence[int]], Features]


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
