"""What all predictors share: an adapter with its backbone, from pictures to what the head says of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.record import AdapterRecord
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.features.compute import compute_features


class Predictor:
    """An adapter with its backbone. `metadata` is the record of the bundle, as a dict."""

    def __init__(self, record: AdapterRecord, adapter: Adapter, backbone: FrozenBackbone) -> None:
        self.task = record.task
        self.classes: Sequence[str] = record.classes
        self.metadata: dict[str, Any] = record.model_dump(mode="json")
        self.adapter, self.backbone = adapter.to(backbone.device), backbone

    @property
    def preprocessing(self) -> Preprocessing:
        """How files are read and made ready for `logits`."""
        return self.backbone.preprocessing

    batch_size = 16
    """Images that are taken at once."""

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """What the head says of preprocessed images (B, channels, height, width); see `Adapter`."""
        needs = self.adapter.feature_spec
        return self.adapter(compute_features(self.backbone, pixels, needs.blocks, needs.patches)).float()

    def _one(self, image: np.ndarray) -> Tensor:
        return self.logits(self.backbone.preprocessing(image)[None])
