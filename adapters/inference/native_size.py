"""Predictors that can read images at their own size, one by one, and make inputs of several sizes from them."""

import numpy as np
import torch
from torch import Tensor

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.fitting.build import scaled_size
from dinomed.adapters.predictor import Predictor
from dinomed.adapters.record import AdapterRecord
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.images.intensity import match_channels


class UnchangedPixels(Preprocessing):
    """Reads images as the adapter's preprocessing, without a change of size or values: (channels, height, width)."""

    def __call__(self, image: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(match_channels(image, self.channels))).permute(2, 0, 1)


def resize_to_input(backbone: FrozenBackbone, image: Tensor, scale: float) -> Tensor:
    """Resize an image of `UnchangedPixels` as for the backbone times `scale`, in whole patches, and normalise it.

    Returns:
        (1, channels, height, width).
    """
    scaled = backbone.preprocessing.model_copy(update={"image_size": scaled_size(backbone, scale)})
    return scaled(image.permute(1, 2, 0).numpy())[None]


class NativeSizePredictor(Predictor):
    """A predictor that reads images at their own size if `native`, and else in the adapter's square."""

    def __init__(self, record: AdapterRecord, adapter: Adapter, backbone: FrozenBackbone, *, native: bool) -> None:
        super().__init__(record, adapter, backbone)
        self.native = native
        self.batch_size = 1 if native else Predictor.batch_size
        self._unchanged = UnchangedPixels(**backbone.preprocessing.model_dump())

    @property
    def preprocessing(self) -> Preprocessing:
        return self._unchanged if self.native else self.backbone.preprocessing

    @property
    def shares_pass(self) -> bool:
        return not self.native

    def _whole_square(self, pixels: Tensor) -> Tensor:
        if not self.native:
            return pixels
        return torch.cat([resize_to_input(self.backbone, image, 1.0) for image in pixels])
