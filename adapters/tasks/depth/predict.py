"""Predicting depth."""

import numpy as np
from torch import Tensor

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.inference.dense import DensePredictor, views_of
from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.tasks.depth.maps import source_from
from dinomed.backbones.frozen import FrozenBackbone

_LEVELS = 1000  # a file whose values tell fewer depths apart is too coarse


class DepthPredictor(DensePredictor):
    """Depths between `low` and `high`, in the unit of the training maps."""

    def __init__(self, record: AdapterRecord, adapter: Adapter, backbone: FrozenBackbone) -> None:
        super().__init__(record, adapter, backbone, views_of(record.usage))
        given = record.usage["depth"]
        self.low, self.high, self.source = float(given["low"]), float(given["high"]), source_from(record.usage)

    def activate(self, logits: Tensor) -> Tensor:
        return logits.clamp(self.low, self.high)

    def depth(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, channels) -> float32 (H, W), at the image's own size."""
        return self.maps(image)[0]

    @property
    def file_scale(self) -> float:
        """Units a value of a written map: those of the training maps, if they are fine enough and reach far enough."""
        scale = self.source.scale
        fits = self.high / scale <= 65535 and (self.high - self.low) / scale >= _LEVELS
        return scale if fits else self.high / 65535
