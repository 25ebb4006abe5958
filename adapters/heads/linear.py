"""Linear heads of the DINOv2 paper (section 7; appendix B.3) for classification and segmentation."""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from dinomed.adapters.adapter import ADAPTERS, Adapter, HeadConfig
from dinomed.features.compute import Features


class LinearClassifierConfig(HeadConfig):
    """Settings: `tokens`, the class token, the mean patch token, or both concatenated."""

    tokens: Literal["cls", "mean", "cls+mean"] = Field(
        "cls", description="the class token, the mean of the patch tokens, or both concatenated"
    )


@ADAPTERS.register("classify.linear")
class LinearClassifier(Adapter):
    """One linear layer on features that are standardised by mean and deviation of the training set.

    In small backbones the scale of the features differs by orders of magnitude between channels. Without
    standardisation, one learning rate would not suit all channels.
    """

    task, Config = "classify", LinearClassifierConfig
    shift: Tensor
    scale: Tensor

    def __init__(self, config: LinearClassifierConfig, embed_dim: int, num_classes: int) -> None:
        super().__init__(config, embed_dim, num_classes)
        width = embed_dim * len(config.blocks) * (2 if config.tokens == "cls+mean" else 1)
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.linear = nn.Linear(width, num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def calibrate(self, cls: np.ndarray, mean: np.ndarray) -> None:
        pooled = self._pool(Features(torch.from_numpy(cls), torch.from_numpy(mean)))
        self.shift.copy_(pooled.mean(0))
        self.scale.copy_(1 / pooled.std(0, correction=0).clamp_min(1e-6))

    def forward(self, features: Features) -> Tensor:
        pooled = (self._pool(features) - self.shift) * self.scale
        return self.linear(pooled)

    def _pool(self, features: Features) -> Tensor:
        parts = {"cls": [features.cls], "mean": [features.mean], "cls+mean": [features.cls, features.mean]}
        return torch.cat(parts[self.config.tokens], dim=-1)


@ADAPTERS.register("segment.linear")
class LinearSegmenter(Adapter):
    """BatchNorm and a 1x1 convolution on patch tokens: one logit for each patch and class."""

    task, uses_patches = "segment", True
    fit_defaults: ClassVar = {"batch_size": 32, "min_steps": 500}

    def __init__(self, config: Any, embed_dim: int, num_classes: int) -> None:
        super().__init__(config, embed_dim, num_classes)
        width = embed_dim * len(config.blocks)
        self.norm = nn.BatchNorm2d(width)
        self.linear = nn.Conv2d(width, num_classes, kernel_size=1)
        nn.init.normal_(self.linear.weight, std=0.01)
        assert self.linear.bias is not None
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features) -> Tensor:
        assert features.patches is not None
        return self.linear(self.norm(features.patches))


class MultiscaleConfig(HeadConfig):
    """Settings of the multiscale head: the last four blocks, concatenated."""

    name: str = "multiscale"
    blocks: tuple[int, ...] = Field(
        (-4, -3, -2, -1), min_length=1, description="blocks whose tokens are concatenated; -1 is the last"
    )


@ADAPTERS.register("segment.multiscale")
class MultiscaleSegmenter(LinearSegmenter):
    """Linear segmenter of the "+ms" protocol of the paper.

    It uses the last four blocks and larger images; predictions are averaged over mirrored and enlarged images. Only the
    first three of the five scales of the reference code are used: 2.28 and 3 cost ten times as much as these together.
    """

    Config, grid, flips, scales = MultiscaleConfig, 32, True, (1.0, 1.32, 1.73)
