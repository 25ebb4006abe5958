"""A plug-in head for dinomed: an MLP with one hidden layer on the class token."""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from dinomed.adapters.adapter import Adapter, HeadConfig
from dinomed.features.compute import Features


class MLPConfig(HeadConfig):
    """Settings of the head, such as ``--set head.hidden=64``; `blocks` is inherited."""

    name: str = "mlp"
    hidden: int = Field(64, ge=1)


class MLPClassifier(Adapter):
    """MLP classifier: standardised class tokens, a hidden layer, one logit for each class."""

    task, Config = "classify", MLPConfig
    shift: Tensor
    scale: Tensor

    def __init__(self, config: MLPConfig, embed_dim: int, num_classes: int) -> None:
        super().__init__(config, embed_dim, num_classes)
        width = embed_dim * len(config.blocks)
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.layers = nn.Sequential(nn.Linear(width, config.hidden), nn.GELU(), nn.Linear(config.hidden, num_classes))

    def calibrate(self, cls: np.ndarray, mean: np.ndarray) -> None:
        """Compute the mean and scale of the features of all training images; called once before the fit."""
        tokens = torch.from_numpy(cls)
        self.shift.copy_(tokens.mean(0))
        self.scale.copy_(1 / tokens.std(0, correction=0).clamp_min(1e-6))

    def forward(self, features: Features) -> Tensor:
        return self.layers((features.cls - self.shift) * self.scale)
