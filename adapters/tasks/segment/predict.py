"""Prediction of masks: class probabilities, the decision at each pixel, and the summary of a lesion map."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.inference.dense import DensePredictor, views_of
from dinomed.adapters.inference.ensemble.maps import EnsembleMaps
from dinomed.adapters.predictor import Size
from dinomed.adapters.record import AdapterRecord, parse_usage
from dinomed.adapters.tasks.segment.lesions import LesionRules
from dinomed.adapters.tasks.segment.mask_schema import mask_schema_from
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.config import Config
from dinomed.errors import DinomedError
from dinomed.metrics.uncertainty.abstention import AbstentionTable

DECIMALS = 4
"""Decimals of the uncertainty in the table of predictions."""
BACKGROUND = 0.1
"""Pixels below this probability are taken for background by `mask_uncertainty`."""


@dataclass(frozen=True)
class MaskPrediction:
    """The prediction for an image of H x W pixels.

    Attributes:
        mask: uint8 (H, W). One class: 1 in the mask, 0 elsewhere. Several: the value of the class at each pixel, or the
            sum of the bits of the classes (int64), as ``dinomed predict`` writes it.
        masks: class to its mask, uint8 (H, W) of 0 and 1, without the background.
        probabilities: float32 (classes, H, W), 0 to 1, in the order of `SegmentPredictor.classes`.
    """

    mask: np.ndarray
    masks: dict[str, np.ndarray]
    probabilities: np.ndarray


class _Thresholds(Config):
    thresholds: tuple[Annotated[float, Field(ge=0, le=1)], ...]


class SegmentPredictor(DensePredictor):
    """Predicts the probabilities of each class.

    Attributes:
        schema: the classes.
        threshold: best threshold on val of a segmenter of one class.
        thresholds: threshold of each class; unused for exclusive classes, where the most probable class is decided.
    """

    def __init__(self, record: AdapterRecord, adapter: Adapter, backbone: FrozenBackbone) -> None:
        usage = record.usage
        super().__init__(record, adapter, backbone, views_of(usage))
        self.schema = mask_schema_from(usage.get("mask_schema"))
        if usage.get("abstention") is not None:
            self.abstention = parse_usage(AbstentionTable, usage["abstention"], "abstention")
        self.exclusive = self.schema.exclusive
        single = 0.5 if record.threshold is None else record.threshold
        self.thresholds = parse_usage(_Thresholds, {"thresholds": usage.get("thresholds") or ()}).thresholds
        self.thresholds = self.thresholds or (single,) * len(self.schema.names)
        if not len(self.thresholds) == len(self.schema.names) == len(record.classes):
            raise DinomedError("the record of the adapter is damaged: its classes and thresholds differ; train again")
        self.threshold = single if len(self.schema.names) == 1 else 0.5

    def activate(self, logits: Tensor) -> Tensor:
        return logits.softmax(1) if self.schema.exclusive else logits.sigmoid()

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Return the probability of each class, float32 (classes, H, W), for an image, uint8 (H, W, channels)."""
        return self.maps(image)

    def probability(self, image: np.ndarray) -> np.ndarray:
        """Return the probability of a lesion (of any class), float32 (H, W), for an image, uint8 (H, W, channels)."""
        return self.any_class(self.maps(image))

    def results(self, pixels: Tensor, sizes: Sequence[Size]) -> list[MaskPrediction]:
        return [self._result(probabilities) for probabilities in self.batch_maps(pixels, sizes)]

    def _result(self, probabilities: np.ndarray) -> MaskPrediction:
        schema, decided = self.schema, self.decide(probabilities)
        planes = schema.planes(decided)
        mask = decided[0] if len(schema.names) == 1 else schema.encode(decided)
        return MaskPrediction(mask, {schema.names[k]: planes[k] for k in schema.reported}, probabilities)

    def any_class(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the probability of any class, (H, W), from those of all classes, (classes, H, W).

        Of exclusive classes it is the sum without the background, else the largest.
        """
        if not self.schema.exclusive:
            return probabilities.max(axis=0)
        return probabilities[list(self.schema.reported)].sum(axis=0).clip(0, 1)

    def confidence(self, probabilities: np.ndarray) -> float:
        """Return how sure the mask of an image is: 1 minus its `uncertainty`, rounded as in the table.

        Args:
            probabilities: float32 (classes, H, W).
        """
        return round(1 - self.uncertainty(probabilities, self.decide(probabilities)), DECIMALS)

    def uncertainty(self, probabilities: np.ndarray, decided: np.ndarray) -> float:
        """Return the `mask_uncertainty` of an image, of several classes their mean, as the Dice is.

        Args:
            probabilities: float32 (classes, H, W).
            decided: uint8 (planes, H, W), of `decide`.
        """
        planes = self.schema.planes(decided).astype(bool)
        return float(np.mean([mask_uncertainty(probabilities[k], planes[k]) for k in self.schema.reported]))

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the decision at each pixel, uint8 (planes, H, W) as in `mask_schema`, from float32 (classes, H, W)."""
        if self.schema.exclusive:
            return probabilities.argmax(axis=0).astype(np.uint8)[None]
        thresholds = np.array(self.thresholds, np.float32)[:, None, None]
        return (probabilities >= thresholds).astype(np.uint8)


class EnsembleSegmenter(EnsembleMaps, SegmentPredictor):
    """Predicts the mean of the probability maps of its members."""


def mask_uncertainty(probability: np.ndarray, inside: np.ndarray) -> float:
    """Return how uncertain a mask is, 0 to 1: 1 minus the Dice score that the map itself expects of its mask.

    It is sum |p - m| / sum (p + m) over the pixels that are in the mask or have a probability of at least `BACKGROUND`.
    The denominator includes the smallest area of a lesion (`LesionRules`), so that a few pixels of an image without a
    lesion do not count. The value is not calibrated.

    Args:
        probability: float32 (H, W), 0 to 1.
        inside: bool (H, W).
    """
    counted = inside | (probability >= BACKGROUND)
    values, mask = probability[counted].astype(np.float64), inside[counted]
    total = values.sum() + mask.sum() + LesionRules().min_share * inside.size
    return float(np.abs(values - mask).sum() / total)


@dataclass(frozen=True)
class LesionSummary:
    """The area and the confidence of a mask; see `summarize`."""

    area_px: int
    area_fraction: float
    confidence: float | None
    highest: float


def summarize(probability: np.ndarray, inside: np.ndarray) -> LesionSummary:
    """Measure a mask `inside`, bool (H, W), of a probability map, float32 (H, W).

    Returns:
        `area_px`, in pixels of the image; `area_fraction`, the share of the image, 0 to 1; `confidence`, the mean
        probability in the mask, None if the mask is empty; and `highest`, the largest probability in the image. The
        confidence is not calibrated, is never below the threshold, and is no measure of missed lesions.
    """
    area = int(inside.sum())
    confidence = float(probability[inside].mean(dtype=np.float64)) if area else None
    return LesionSummary(area, area / inside.size, confidence, float(probability.max()))
