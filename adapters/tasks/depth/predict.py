"""Prediction of depth maps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.inference.dense import DensePredictor, views_of
from dinomed.adapters.inference.ensemble.maps import EnsembleMaps
from dinomed.adapters.predictor import Size
from dinomed.adapters.record import AdapterRecord, parse_usage
from dinomed.adapters.tasks.depth.maps import DepthSource
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.config import Config

_LEVELS = 1000  # a file with fewer different values is too coarse


@dataclass(frozen=True)
class DepthPrediction:
    """The prediction for an image of H x W pixels.

    Attributes:
        depth: float32 (H, W), in `unit`.
        unit: unit of the training maps, as the user named it.
    """

    depth: np.ndarray
    unit: str


class _Depths(Config):
    low: float
    high: float
    column: str
    scale: float = Field(gt=0)
    unit: str

    @model_validator(mode="after")
    def _ordered(self) -> "_Depths":
        if not self.low < self.high:
            raise ValueError("low must be below high")
        return self


class DepthPredictor(DensePredictor):
    """Predicts depths between `low` and `high`, in the unit of the training maps."""

    def __init__(self, record: AdapterRecord, adapter: Adapter, backbone: FrozenBackbone) -> None:
        super().__init__(record, adapter, backbone, views_of(record.usage))
        depths = parse_usage(_Depths, record.usage.get("depth"), "depth")
        self.low, self.high = depths.low, depths.high
        self.source = DepthSource(depths.column, depths.scale, depths.unit)

    def activate(self, logits: Tensor) -> Tensor:
        return logits.clamp(self.low, self.high)

    def depth(self, image: np.ndarray) -> np.ndarray:
        """Return the depths, float32 (H, W), of an image, uint8 (H, W, channels)."""
        return self.maps(image)[0]

    def results(self, pixels: Tensor, sizes: Sequence[Size]) -> list[DepthPrediction]:
        return [DepthPrediction(maps[0], self.source.unit) for maps in self.batch_maps(pixels, sizes)]

    @property
    def file_scale(self) -> float:
        """The depth of a value of 1 in written maps: that of the training maps, if it gives enough values and range."""
        scale = self.source.scale
        fits = self.high / scale <= 65535 and (self.high - self.low) / scale >= _LEVELS
        return scale if fits else self.high / 65535


class EnsembleDepth(EnsembleMaps, DepthPredictor):
    """Predicts the mean of the depths of its members, each within its own range."""
