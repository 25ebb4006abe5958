"""Several adapters, and an index, on one pass of the backbone that they share."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinomed.adapters.adapter import FeatureSpec
from dinomed.adapters.fitting.build import at_image_size
from dinomed.adapters.inference.dense import DensePredictor
from dinomed.adapters.inference.loader import ClassifyPredictor, Predictor
from dinomed.adapters.retrieval.search import ImageIndex
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.backbones.variants import VARIANTS
from dinomed.features.compute import Features
from dinomed.io.prefetch import batched

Consumer = Predictor | ImageIndex


class Backbones:
    """`load_backbone`, but what was loaded once is kept: adapters of one backbone share its weights, at whatever size
    each looks at images."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str | None, ...], FrozenBackbone] = {}

    def __call__(
        self,
        name: str | Path,
        *,
        weights: str | Path | None = None,
        device: str | torch.device = "cpu",
        image_size: int | None = None,
    ) -> FrozenBackbone:
        """As `load_backbone`; `image_size` null is the backbone's own."""
        which = str(name) if str(name) in VARIANTS else str(Path(name).resolve())
        key = (which, None if weights is None else str(Path(weights).resolve()), str(device))
        if key not in self._kept:
            self._kept[key] = load_backbone(name, weights=weights, device=device)
        found = self._kept[key]
        return found if image_size is None else at_image_size(found, image_size)


@torch.inference_mode()
def shared_features(backbone: FrozenBackbone, pixels: Tensor, needs: Sequence[FeatureSpec]) -> list[Features]:
    """What each of `needs` asks for, of one pass over preprocessed images (B, channels, height, width)."""
    depth = backbone.depth
    wanted = sorted({block % depth for need in needs for block in need.blocks})
    tokens = dict(zip(wanted, backbone(pixels, wanted), strict=True))
    means = {block: one.patches.mean(dim=1) for block, one in tokens.items()}
    grid = backbone.grid((pixels.shape[-2], pixels.shape[-1]))
    made: dict[FeatureSpec, Features] = {}
    for need in needs:
        if need not in made:
            own = [block % depth for block in need.blocks]
            patches = None
            if need.patches:
                flat = torch.cat([tokens[block].patches for block in own], dim=-1)
                patches = flat.transpose(1, 2).unflatten(2, grid)
            made[need] = Features(
                torch.cat([tokens[block].cls for block in own], dim=-1),
                torch.cat([means[block] for block in own], dim=-1),
                patches,
            )
    return [made[need] for need in needs]


def predict_many(consumers: Sequence[Consumer], images: Sequence[np.ndarray]) -> list[list[Any]]:
    """What each consumer says of each image; those with the same backbone and image size share its pass.

    A segmenter that looks at windows, mirror images or other sizes needs passes of its own, and takes them.

    Args:
        consumers: of `load_adapter` or `load_index`.
        images: uint8 (H, W, channels), of any sizes.

    Returns:
        For each consumer a list over images: of a classifier a dict of probabilities by class; of a segmenter float32
        (classes, H, W), of a depth adapter (1, H, W), at the image's own size; of an index the query, float32 (D,).
    """
    out: list[list[Any]] = [[] for _ in consumers]
    together: dict[str, list[int]] = defaultdict(list)
    for place, consumer in enumerate(consumers):
        if isinstance(consumer, DensePredictor) and (consumer.views.native or consumer.views.flips):
            out[place] = [consumer.maps(image) for image in images]
        else:
            together[consumer.backbone.fingerprint].append(place)
    for places in together.values():
        backbone = consumers[places[0]].backbone
        for part in batched(images, Predictor.batch_size):
            pixels = backbone.preprocessing.stack(part)
            found = shared_features(backbone, pixels, [_needs(consumers[place]) for place in places])
            for place, features in zip(places, found, strict=True):
                out[place] += _answer(consumers[place], features, [image.shape[:2] for image in part])
    return out


def _needs(consumer: Consumer) -> FeatureSpec:
    return consumer.feature_spec if isinstance(consumer, ImageIndex) else consumer.adapter.feature_spec


@torch.inference_mode()
def _answer(consumer: Consumer, features: Features, sizes: Sequence[tuple[int, ...]]) -> list[Any]:
    if isinstance(consumer, ImageIndex):
        return list(consumer.embed_features(features))
    if isinstance(consumer, ClassifyPredictor):
        alone = consumer.answer.alone(features, len(consumer.adapter.feature_spec.blocks))
        rows = consumer.answer.probabilities(consumer.adapter(alone)).cpu().tolist()
        return [dict(zip(consumer.classes, row, strict=True)) for row in rows]
    assert isinstance(consumer, DensePredictor)
    logits = consumer.adapter(features).float()
    return [consumer.resized(one[None], size) for one, size in zip(logits, sizes, strict=True)]
