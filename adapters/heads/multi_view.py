"""DINO-MVR (Jiang et al. 2026, arXiv 2605.07221): a small MLP on each of the last three blocks, fused over many views.

In training each MLP has its own loss. A prediction runs over several sizes of the image and their mirror images; the
probabilities of all MLPs in all passes are fused at the size of the image, pixel by pixel, with a weight that is high
where a view is certain. The abstract of the paper names the parts; the formula of the weight here (`fuse_by_entropy`),
the sizes and the width of the MLPs are choices of dinomed. The spatial regularisation of the paper is left out.
"""

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from dinomed.adapters.adapter import ADAPTERS, Adapter, HeadConfig, split_blocks
from dinomed.features.compute import Features

_SMALLEST = 1e-3
"""Smallest weight of a view, so that a pixel where no view is certain has their mean."""


class MultiViewConfig(HeadConfig):
    """Settings: `hidden`, the width of the MLPs; `dropout` on it."""

    name: str = "multi_view"
    blocks: tuple[int, ...] = Field((-3, -2, -1), min_length=1, description="blocks with an MLP each; -1 is the last")
    hidden: int = Field(128, ge=1, description="width of the MLPs")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout of the hidden layer, in training")


@ADAPTERS.register("segment.multi_view")
class MultiViewSegmenter(Adapter):
    """BatchNorm and an MLP on the patch tokens of each block.

    `forward` in training returns the logits of all MLPs, (blocks * B, classes, rows, columns), one MLP after the other;
    in evaluation their mean, which is used only to choose the epoch. Predictions fuse `probe_logits`.
    """

    task, Config, uses_patches = "segment", MultiViewConfig, True
    flips, scales = True, (1.0, 1.5)
    one_pass: ClassVar[bool] = False
    fit_defaults: ClassVar = {"batch_size": 16, "min_steps": 500}

    def __init__(self, config: MultiViewConfig, embed_dim: int, num_classes: int) -> None:
        super().__init__(config, embed_dim, num_classes)
        self.probes = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(embed_dim), nn.Conv2d(embed_dim, config.hidden, 1), nn.GELU(),
                nn.Dropout(config.dropout), nn.Conv2d(config.hidden, num_classes, 1),
            )
            for _ in config.blocks
        )  # fmt: skip

    def probe_logits(self, features: Features) -> Tensor:
        parts = split_blocks(features, len(self.probes))
        return torch.stack([probe(part.patches) for probe, part in zip(self.probes, parts, strict=True)])

    def forward(self, features: Features) -> Tensor:
        logits = self.probe_logits(features)
        return logits.flatten(0, 1) if self.training else logits.mean(0)

    def fuse(self, maps: np.ndarray, exclusive: bool) -> np.ndarray:
        return fuse_by_entropy(maps, exclusive)


def fuse_by_entropy(maps: np.ndarray, exclusive: bool) -> np.ndarray:
    """Fuse probability maps of several views with weights from their entropy.

    The weight of a view at a pixel is 1 - H / H_max, where H is the entropy of its probabilities there and H_max the
    largest possible one, and at least 0.001. A certain view has the weight 1.

    Args:
        maps: float32 (views, classes, H, W), 0 to 1.
        exclusive: whether the classes of a pixel sum to 1 and share one entropy and one weight; else each class has the
            entropy of a yes-or-no question.

    Returns:
        float32 (classes, H, W). Exclusive classes still sum to 1.
    """
    classes = maps.shape[1]
    if exclusive:
        entropy = -(maps * np.log(maps.clip(1e-12))).sum(axis=1, keepdims=True) / np.log(max(classes, 2))
    else:
        other = 1 - maps
        entropy = -(maps * np.log(maps.clip(1e-12)) + other * np.log(other.clip(1e-12))) / np.log(2)
    weight = np.maximum(1 - entropy, _SMALLEST)
    return np.asarray((weight * maps).sum(axis=0) / weight.sum(axis=0), np.float32)
