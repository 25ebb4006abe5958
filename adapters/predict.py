"""Using adapters: `load_adapter` gives a predictor of images as arrays; folders are in `dinomed.adapters.folders`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dinomed.adapters.bundle import load_head, read_record
from dinomed.adapters.contract import Adapter
from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.reference import find_backbone
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.device import resolve_device
from dinomed.features.compute import compute_features


class Predictor:
    """An adapter with its backbone. `metadata` is the record of the bundle, as a dict."""

    def __init__(self, record: AdapterRecord, adapter: Adapter, backbone: FrozenBackbone) -> None:
        self.task = record.task
        self.classes: Sequence[str] = record.classes
        self.metadata: dict[str, Any] = record.model_dump(mode="json")
        self.adapter, self.backbone = adapter.to(backbone.device), backbone

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """What the head says of preprocessed images (B, channels, height, width); see `Adapter`."""
        needs = self.adapter.needs
        return self.adapter(compute_features(self.backbone, pixels, needs.blocks, needs.patches)).float()

    def _one(self, image: np.ndarray) -> Tensor:
        return self.logits(self.backbone.preprocessing(image)[None])


class SegmentPredictor(Predictor):
    """Lesion probabilities. `threshold` is the one that was best on validation."""

    def __init__(self, record: AdapterRecord, adapter: Adapter, backbone: FrozenBackbone) -> None:
        super().__init__(record, adapter, backbone)
        self.threshold = 0.5 if record.threshold is None else record.threshold

    def probability(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, channels) -> the probability of lesion, float32 (H, W), at the image's own size.

        The whole image is squashed to the adapter's square; its logits are stretched back to (H, W).
        """
        return resize_probability(self._one(image), image.shape[:2])

    def probability_maps(self, pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """The same of a preprocessed batch, each image at its own (height, width)."""
        return [resize_probability(one[None], size) for one, size in zip(self.logits(pixels), sizes, strict=True)]


class ClassifyPredictor(Predictor):
    """Class probabilities."""

    def probabilities(self, image: np.ndarray) -> dict[str, float]:
        """uint8 (H, W, channels) -> the probability of each class; they sum to 1."""
        values = self._one(image)[0].softmax(-1).cpu()
        return dict(zip(self.classes, values.tolist(), strict=True))

    def probability_rows(self, pixels: Tensor) -> np.ndarray:
        """Float32 (B, classes) of a preprocessed batch."""
        return self.logits(pixels).softmax(-1).cpu().numpy()


def load_adapter(
    folder: str | Path, device: str | torch.device = "cpu", backbone: str | Path | None = None
) -> SegmentPredictor | ClassifyPredictor:
    """The predictor of a bundle.

    Args:
        folder: what ``dinomed train`` wrote.
        device: cpu, cuda, cuda:N, mps or auto.
        backbone: where the backbone is, if it is no longer where the bundle says.

    Raises:
        UsageError: no such bundle, or another backbone than it was made on.
        DinomedError: the bundle is damaged, or its backbone is missing.
    """
    record = read_record(folder)
    adapter = load_head(folder, record)
    where = resolve_device(device) if isinstance(device, str) else device
    found = find_backbone(folder, record, backbone, where)
    kind = SegmentPredictor if record.task == "segment" else ClassifyPredictor
    return kind(record, adapter, found)


def resize_probability(logits: Tensor, size: tuple[int, ...]) -> np.ndarray:
    """(1, 1, rows, columns) logits to probabilities float32 (height, width) of an image of that size, px.

    Logits and not probabilities are interpolated, in one step: an edge between patches stays as steep as it was fitted.
    """
    return interpolate(logits.float(), (size[0], size[1]), mode="bilinear")[0, 0].sigmoid().cpu().numpy()


@dataclass(frozen=True)
class LesionSummary:
    """What there is to say of one probability map; see `lesion_summary`."""

    area_px: int
    area_fraction: float
    confidence: float | None
    highest: float


def lesion_summary(probability: np.ndarray, threshold: float) -> LesionSummary:
    """Area and confidence of the pixels that are at least `threshold` probable; probability float32 (H, W).

    `area_px` counts pixels of the image's own size, `area_fraction` is their share of the image (0 to 1). `confidence`
    is the mean probability inside the mask, None where the mask is empty. It is not calibrated, cannot be below the
    threshold, and says nothing of what was missed: how sure the model is, not how often it is right.
    """
    inside = probability >= threshold
    area = int(inside.sum())
    confidence = float(probability[inside].mean(dtype=np.float64)) if area else None
    return LesionSummary(area, area / inside.size, confidence, float(probability.max()))
