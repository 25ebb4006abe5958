"""Inputs of a fit: the backbone at the right image size, a new head, and the features of each split."""

from collections.abc import Sequence
from pathlib import Path

import torch

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.fitting.config import TrainConfig, adapter_class
from dinomed.adapters.fitting.data import Splits
from dinomed.backbones.frozen import FrozenBackbone, check_image_size
from dinomed.features.cache import FeatureCache
from dinomed.features.compute import Features
from dinomed.features.extract import extract


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


def extract_splits(
    backbone: FrozenBackbone, splits: Splits, adapter: Adapter, cache: str | Path
) -> tuple[FeatureCache, FeatureCache]:
    """Compute or load the features of train and of val; each split has its own entry in the feature cache."""
    spec = adapter.feature_spec
    train, val = (
        extract(
            backbone, part, cache=cache, blocks=spec.blocks, patches=spec.patches, description=f"features of {name}"
        )
        for name, part in (("train", splits.train), ("val", splits.val))
    )
    return train, val


def at_image_size(backbone: FrozenBackbone, image_size: int) -> FrozenBackbone:
    """Return the backbone with another image size, px; raise a `UsageError` if the patch size does not divide it."""
    if image_size == backbone.preprocessing.image_size:
        return backbone
    check_image_size(image_size, backbone.patch_size)
    preprocessing = backbone.preprocessing.model_copy(update={"image_size": image_size})
    return FrozenBackbone(backbone.vit, preprocessing, backbone.name, backbone.source, backbone.metadata)


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
