"""Inputs of a fit: the backbone at the right image size, a new head, and the features of each split."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinomed.adapters.adapter import Adapter, FeatureSpec
from dinomed.adapters.fitting.config import TrainConfig, adapter_class
from dinomed.adapters.fitting.data import Splits
from dinomed.backbones.frozen import FrozenBackbone, check_image_size
from dinomed.backbones.preprocessing import Aspect
from dinomed.datasets.manifest import Manifest
from dinomed.features.cache import FeatureCache
from dinomed.features.compute import Features
from dinomed.features.extract import extract, resolve_blocks

MAX_SCALED = 4096
"""Largest size of a scaled image, px; the attention maps of a larger square take gigabytes."""


def build_adapter(config: TrainConfig, backbone: FrozenBackbone, num_classes: int, *, width: int = 1) -> Adapter:
    """Build an untrained adapter whose initial weights depend only on the seed.

    Args:
        width: number of images whose features are concatenated into one example (groups; 1 otherwise).
    """
    cls = adapter_class(config.task, config.head.name)
    head = cls.resolve_config(config.head, backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return cls(head, backbone.embed_dim * width, num_classes)


class PickedBlocks(FeatureCache):
    """The features of some of the blocks of a feature cache, in the order of `blocks` (counted from 0)."""

    def __init__(self, cache: FeatureCache, blocks: Sequence[int]) -> None:
        super().__init__(cache.folder, cache.key)
        self.cache, self.places = cache, [cache.key.blocks.index(block) for block in blocks]

    @cached_property
    def cls(self) -> np.ndarray:
        return self._pick(self.cache.cls)

    @cached_property
    def mean(self) -> np.ndarray:
        return self._pick(self.cache.mean)

    @cached_property
    def grids(self) -> np.ndarray | None:
        return self.cache.grids

    def patches(self, indices: Sequence[int]) -> np.ndarray:
        return self._pick(self.cache.patches(indices))

    def _pick(self, features: np.ndarray) -> np.ndarray:
        """Return (N, picked blocks * C, ...) of features (N, blocks * C, ...)."""
        blocks = features.reshape(len(features), len(self.key.blocks), -1, *features.shape[2:])
        return blocks[:, self.places].reshape(len(features), -1, *features.shape[2:])


class PickedRows(FeatureCache):
    """The features of some of the images of a feature cache."""

    def __init__(self, cache: FeatureCache, rows: Sequence[int]) -> None:
        super().__init__(cache.folder, cache.key)
        self.cache, self.rows = cache, list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def cls(self) -> np.ndarray:
        return self.cache.cls[self.rows]

    @cached_property
    def mean(self) -> np.ndarray:
        return self.cache.mean[self.rows]

    @cached_property
    def grids(self) -> np.ndarray | None:
        return None if self.cache.grids is None else self.cache.grids[self.rows]

    def patches(self, indices: Sequence[int]) -> np.ndarray:
        return self.cache.patches([self.rows[index] for index in indices])


def extract_blocks(
    backbone: FrozenBackbone, manifest: Manifest, spec: FeatureSpec, shared: Sequence[int], **options: Any
) -> FeatureCache:
    """Compute or load the features that a head reads.

    Args:
        shared: blocks that are extracted together, because other heads read them too; empty for those of `spec`.
        options: further arguments of `dinomed.features.extract.extract`.
    """
    if not shared:
        return extract(backbone, manifest, blocks=spec.blocks, patches=spec.patches, **options)
    cache = extract(backbone, manifest, blocks=shared, patches=spec.patches, **options)
    return PickedBlocks(cache, resolve_blocks(spec.blocks, backbone.depth))


def extract_splits(
    backbone: FrozenBackbone, splits: Splits, adapter: Adapter, cache: str | Path, shared: Sequence[int] = ()
) -> tuple[FeatureCache, FeatureCache]:
    """Compute or load the features of train and of val; each split has its own entry in the feature cache, unless both
    are parts of `splits.pool`, which has one.

    `shared` are the blocks of `extract_blocks`.
    """
    if splits.pool is not None:
        spec = adapter.feature_spec
        whole = extract_blocks(backbone, splits.pool, spec, shared, cache=cache, description="features of all folds")
        places = {image: row for row, image in enumerate(splits.pool.column("image"))}
        rows = ([places[image] for image in part.column("image")] for part in (splits.train, splits.val))
        return PickedRows(whole, next(rows)), PickedRows(whole, next(rows))
    train, val = (
        extract_blocks(backbone, part, adapter.feature_spec, shared, cache=cache, description=f"features of {name}")
        for name, part in (("train", splits.train), ("val", splits.val))
    )
    return train, val


def at_image_size(backbone: FrozenBackbone, image_size: int | None, aspect: Aspect | None = None) -> FrozenBackbone:
    """Return the backbone with another image size, px, or another aspect; None keeps its own.

    Raises:
        UsageError: the patch size does not divide the image size.
    """
    changes = {"image_size": image_size, "aspect": aspect}
    preprocessing = backbone.preprocessing.model_copy(
        update={name: value for name, value in changes.items() if value is not None}
    )
    if preprocessing == backbone.preprocessing:
        return backbone
    check_image_size(preprocessing.image_size, backbone.patch_size)
    return FrozenBackbone(
        backbone.model, preprocessing, backbone.name, backbone.source, backbone.metadata,
        stated_statistics=backbone.stated_statistics,
    )  # fmt: skip


def scaled_size(backbone: FrozenBackbone, scale: float) -> int:
    """Return the image size times `scale`, in whole patches, px; at most `MAX_SCALED`."""
    patch = backbone.patch_size
    return min(max(round(backbone.preprocessing.image_size * scale / patch), 1) * patch, MAX_SCALED // patch * patch)


def default_image_size(backbone: FrozenBackbone, grid: int) -> int:
    """Return the larger of the backbone's image size and the size of `grid` patches a side, px."""
    return max(backbone.preprocessing.image_size, grid * backbone.patch_size)


def gather(cache: FeatureCache, indices: Sequence[int], device: torch.device) -> Features:
    """Read the features of some images from a feature cache, with patch tokens if it holds them."""
    rows = list(indices)
    return Features(
        torch.from_numpy(cache.cls[rows]).to(device),
        torch.from_numpy(cache.mean[rows]).to(device),
        torch.from_numpy(cache.patches(rows)).to(device) if cache.key.patches else None,
    )
