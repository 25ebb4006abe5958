"""Predicting masks: probabilities of classes, what they say of each pixel, and the summary of one lesion map."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn.functional import interpolate

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.inference.dense import DensePredictor, views_of
from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.tasks.segment.mask_schema import mask_schema_from
from dinomed.backbones.frozen import FrozenBackbone


class SegmentPredictor(DensePredictor):
    """Probabilities of each class. `threshold` is the one that was best on validation, `thresholds` that of each class
    (of no meaning where classes exclude each other: the most probable one counts there)."""

    def __init__(self, record: AdapterRecord, adapter: Adapter, backbone: FrozenBackbone) -> None:
        usage = record.usage
        super().__init__(record, adapter, backbone, views_of(usage))
        self.schema = mask_schema_from(usage.get("legend"))
        single = 0.5 if record.threshold is None else record.threshold
        self.thresholds: tuple[float, ...] = tuple(usage.get("thresholds") or [single] * len(self.schema.names))
        self.threshold = single if len(self.schema.names) == 1 else 0.5

    def activate(self, logits: Tensor) -> Tensor:
        return logits.softmax(1) if self.schema.exclusive else logits.sigmoid()

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, channels) -> the probability of each class, float32 (classes, H, W), at the image's own size."""
        return self.maps(image)

    def probability(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, channels) -> the probability of a lesion, float32 (H, W); of several classes, that of any."""
        return self.any_class(self.maps(image))

    def any_class(self, probabilities: np.ndarray) -> np.ndarray:
        """(classes, H, W) -> (H, W): of classes that exclude each other all but the background's, else the largest."""
        if not self.schema.exclusive:
            return probabilities.max(axis=0)
        return probabilities[list(self.schema.reported)].sum(axis=0).clip(0, 1)

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """float32 (classes, H, W) -> uint8 (planes, H, W), as `dinomed.adapters.tasks.segment.mask_schema` has it."""
        if self.schema.exclusive:
            return probabilities.argmax(axis=0).astype(np.uint8)[None]
        cuts = np.array(self.thresholds, np.float32)[:, None, None]
        return (probabilities >= cuts).astype(np.uint8)


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
    return summarize(probability, inside)


def summarize(probability: np.ndarray, inside: np.ndarray) -> LesionSummary:
    """The same of any mask `inside`, bool (H, W)."""
    area = int(inside.sum())
    confidence = float(probability[inside].mean(dtype=np.float64)) if area else None
    return LesionSummary(area, area / inside.size, confidence, float(probability.max()))


def resize_probability(logits: Tensor, size: tuple[int, ...]) -> np.ndarray:
    """(1, 1, rows, columns) logits to probabilities float32 (height, width) of an image of that size, px, as
    `DensePredictor.resized` does."""
    return interpolate(logits.float(), (size[0], size[1]), mode="bilinear")[0, 0].sigmoid().cpu().numpy()
