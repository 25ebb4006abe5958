"""What goes into a fit: the backbone at the right size, a fresh head, and the features of each split."""

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
    """A new adapter; its first weights depend on the seed alone. `width` images' features are beside each other."""
    cls = adapter_class(config.task, config.head.name)
    head = cls.resolve_config(config.head, backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return cls(head, backbone.embed_dim * width, num_classes)


def extract_splits(
    backbone: FrozenBackbone, splits: Splits, adapter: Adapter, cache: str | Path
) -> tuple[FeatureCache, FeatureCache]:
    """The features of train and of val; each split has its own cache, shared by all that use it."""
    needs = adapter.feature_spec
    train, val = (
        extract(
            backbone, part, cache=cache, blocks=needs.blocks, patches=needs.patches, description=f"features of {name}"
        )
        for name, part in (("train", splits.train), ("val", splits.val))
    )
    return train, val


def at_image_size(backbone: FrozenBackbone, image_size: int) -> FrozenBackbone:
    """The same backbone for images resized to another square, px. Raises a `UsageError` if the patch does not fit."""
    if image_size == backbone.preprocessing.image_size:
        return backbone
    check_image_size(image_size, backbone.patch_size)
    preprocessing = backbone.preprocessing.model_copy(update={"image_size": image_size})
    return FrozenBackbone(backbone.vit, preprocessing, backbone.name, backbone.source, backbone.metadata)


def default_image_size(backbone: FrozenBackbone, grid: int) -> int:
    """The backbone's own size, or what gives `grid` patches a side if that is more, px."""
    return max(backbone.preprocessing.image_size, grid * backbone.patch_size)


def gather(cache: FeatureCache, indices: Sequence[int], device: torch.device) -> Features:
    """The features of some images of a cache, with their patches if it holds them."""
    rows = list(indices)
    return Features(
        torch.from_numpy(cache.cls[rows]).to(device),
        torch.from_numpy(cache.mean[rows]).to(device),
        torch.from_numpy(cache.patches(rows)).to(device) if cache.key.patches else None,
    )
