"""Shared inference: several adapters and an index on one backbone pass."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dinomed.adapters.adapter import FeatureSpec
from dinomed.adapters.fitting.build import at_image_size
from dinomed.adapters.predictor import Predictor
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.huggingface import is_hub_name
from dinomed.backbones.load import load_backbone
from dinomed.backbones.preprocessing import Aspect
from dinomed.backbones.variants import VARIANTS
from dinomed.features.compute import Features, check_features
from dinomed.features.loading import preprocess_arrays


class FeatureConsumer(Protocol):
    """What computes its output from features of a backbone: a predictor, or an index."""

    backbone: FrozenBackbone

    @property
    def feature_spec(self) -> FeatureSpec:
        """The features to compute."""
        ...

    def outputs_of_features(self, features: Features, sizes: Sequence[tuple[int, ...]]) -> list[Any]:
        """Return the output for each image."""
        ...


class Backbones:
    """A replacement of `load_backbone` that keeps each loaded backbone, so that adapters on one backbone share its
    weights, at any image size."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[str | None, ...], FrozenBackbone] = {}

    def __call__(
        self,
        name: str | Path,
        *,
        weights: str | Path | None = None,
        device: str | torch.device = "cpu",
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        aspect: Aspect | None = None,
    ) -> FrozenBackbone:
        """Load a backbone as `load_backbone` does; without `image_size` and `aspect` it has its own."""
        place = str(name) if str(name) in VARIANTS or is_hub_name(name) else str(Path(name).resolve())
        key = (place, None if weights is None else str(Path(weights).resolve()), str(device), str(mean), str(std))
        if key not in self._loaded:
            self._loaded[key] = load_backbone(name, weights=weights, device=device, mean=mean, std=std)
        return at_image_size(self._loaded[key], image_size, aspect)


@torch.inference_mode()
def shared_features(backbone: FrozenBackbone, pixels: Tensor, specs: Sequence[FeatureSpec]) -> list[Features]:
    """Compute the features of several specifications in one backbone pass.

    Args:
        backbone: the shared backbone.
        pixels: preprocessed images (B, channels, height, width).
        specs: blocks and tokens that each consumer reads.

    Returns:
        The features of each specification, in order.

    Raises:
        NotFiniteError: the features of an image are not finite.
    """
    depth = backbone.depth
    blocks = sorted({block % depth for spec in specs for block in spec.blocks})
    tokens = dict(zip(blocks, backbone(pixels, blocks), strict=True))
    means = {block: block_tokens.patches.mean(dim=1) for block, block_tokens in tokens.items()}
    grid = backbone.grid((pixels.shape[-2], pixels.shape[-1]))
    features: dict[FeatureSpec, Features] = {}
    for spec in specs:
        if spec not in features:
            chosen = [block % depth for block in spec.blocks]
            patches = None
            if spec.patches:
                flat = torch.cat([tokens[block].patches for block in chosen], dim=-1)
                patches = flat.transpose(1, 2).unflatten(2, grid)
            features[spec] = Features(
                torch.cat([tokens[block].cls for block in chosen], dim=-1),
                torch.cat([means[block] for block in chosen], dim=-1),
                patches,
                pixels.to(backbone.device),
            )
    for computed in features.values():
        check_features(computed)
    return [features[spec] for spec in specs]


@torch.inference_mode()
def predict_many(consumers: Sequence[FeatureConsumer], images: Sequence[np.ndarray]) -> list[list[Any]]:
    """Compute the outputs of several consumers; those with the same backbone and preprocessing share its pass.

    A segmenter that uses windows, mirror images or other sizes has passes of its own.

    Args:
        consumers: predictors (`load_adapter`) and indexes.
        images: uint8 (H, W, channels), of any sizes.

    Returns:
        For each consumer a list over the images: of a classifier a dict of probabilities by class; of a segmenter
        float32 (classes, H, W) and of a depth adapter (1, H, W), at the size of the image; of an index the query,
        float32 (D,).

    Raises:
        NotFiniteError: a consumer gives values that are not finite for an image.
    """
    outputs: list[list[Any]] = [[] for _ in consumers]
    sharing: dict[str, list[int]] = defaultdict(list)
    for place, consumer in enumerate(consumers):
        if isinstance(consumer, Predictor) and not consumer.shares_pass:
            outputs[place] = [consumer.output_of_image(image) for image in images]
        else:
            sharing[consumer.backbone.fingerprint].append(place)
    for places in sharing.values():
        backbone = consumers[places[0]].backbone
        for pixels, sizes in preprocess_arrays(images, backbone.preprocessing, Predictor.batch_size):
            shared = shared_features(backbone, pixels, [consumers[place].feature_spec for place in places])
            for place, features in zip(places, shared, strict=True):
                outputs[place] += consumers[place].outputs_of_features(features, sizes)
    return outputs
