"""Sources of raw features for descriptors: handcrafted features, a frozen backbone, SSCD.

A source maps B images, uint8 RGB ``(H, W, 3)``, to raw features, float32 (B, C).
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.device import resolve_device
from dinomed.errors import UsageError
from dinomed.features.compute import compute_features
from dinomed.features.pooling import generalised_mean
from dinomed.images.intensity import IntensityConfig
from dinomed.io.files import sha256_file
from dinomed.pretrain.curation.descriptors.config import ComposedConfig, SourceConfig, SSCDConfig
from dinomed.pretrain.curation.descriptors.handcrafted import SIZE, compose
from dinomed.pretrain.curation.descriptors.sscd import describe, load_sscd


class DescriptorSource(Protocol):
    """Maps images, uint8 RGB ``(H, W, 3)``, to raw features, float32 (B, C)."""

    fingerprint: str

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray: ...


class ComposedSource:
    """Handcrafted features; see `handcrafted`."""

    fingerprint = f"composed/1/{SIZE}"

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([compose(image) for image in images])


class BackboneSource:
    """Class token and generalised mean of the patch tokens, from the last block of a frozen ViT."""

    def __init__(self, backbone: FrozenBackbone, power: float) -> None:
        self.backbone, self.power = backbone, power
        self.fingerprint = f"backbone/1/{backbone.fingerprint}/{power}"

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        features = compute_features(self.backbone, self.backbone.preprocessing.stack(images), (-1,), patches=True)
        assert features.patches is not None
        pooled = generalised_mean(features.patches, self.power, rescale=False)
        return np.asarray(torch.cat([features.cls, pooled], dim=1).float().cpu().numpy())


class SSCDSource:
    """Features of the SSCD network; see `sscd`."""

    def __init__(self, path: str, allow_code: bool, device: torch.device) -> None:
        self.device = device
        self.network = load_sscd(path, allow_code=allow_code).to(device)
        self.fingerprint = f"sscd/1/{sha256_file(path)}"

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return describe(self.network, images, self.device)


def build_source(config: SourceConfig, device: str = "auto") -> DescriptorSource:
    """Build the source of a config; `device` is for networks.

    Raises:
        UsageError: a network does not exist, or a backbone does not read images as pictures of 8 bits.
    """
    if isinstance(config, ComposedConfig):
        return ComposedSource()
    if isinstance(config, SSCDConfig):
        return SSCDSource(config.weights, config.allow_code, resolve_device(device))
    loaded = load_backbone(
        config.backbone, weights=config.weights, device=device, image_size=config.image_size, mean=config.mean,
        std=config.std,
    )  # fmt: skip
    reading = loaded.preprocessing
    if reading.channels not in (1, 3) or reading.intensity.window or reading.intensity.percentiles:
        raise UsageError(
            f"descriptor.source: backbone {config.backbone} reads images of {reading.channels} channels with "
            f"{_range(reading.intensity)}, but descriptors compare pictures of 8 bits; leave descriptor.source out"
        )
    return BackboneSource(loaded, config.power)


def check_source(config: SourceConfig, device: str = "auto") -> None:
    """Raise `UsageError` if the network of a config does not exist or fits no pictures, before the images are read."""
    if not isinstance(config, ComposedConfig):
        build_source(config, device)


def _range(intensity: IntensityConfig) -> str:
    if intensity.window:
        return f"the window {list(intensity.window)}"
    return f"the percentiles {list(intensity.percentiles)}" if intensity.percentiles else "their full range"
