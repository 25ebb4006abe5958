"""Depth heads (DINOv2, section 7.4 and its reference code): linear on one or four blocks, and DPT.

Both keep to the range `low` to `high` by construction; in the reference code the linear head's bins do not depend on
the range that it is given, and DPT's depths have no upper end.
"""

from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dinomed.adapters.adapter import ADAPTERS, Adapter, HeadConfig, split_blocks
from dinomed.adapters.heads.dpt import DPT, DPTConfig, PyramidAdapter
from dinomed.features.compute import Features

UPSAMPLING, MIN_SHARE = 4, 0.1


class DepthHeadConfig(HeadConfig):
    """`low`, `high`: the range of depths, in the data's unit; null: that of the training maps."""

    low: float | None = Field(None, gt=0)
    high: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _range(self) -> "DepthHeadConfig":
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self

    def limits(self) -> tuple[float, float]:
        """The range, which is known by the time that a head is built."""
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high


class LinearDepthConfig(DepthHeadConfig):
    """`bins`: depths, evenly spaced over the range, that are weighted for each pixel."""

    bins: int = Field(256, ge=2)


@ADAPTERS.register("depth.linear")
class LinearDepth(Adapter):
    """The class token beside every patch token, a linear layer to a logit for each bin, enlarged 4 times; the depth is
    the mean of the bins, weighted by relu(logit) + 0.1.

    Enlarging logits, and not tokens as the reference does, gives the same: both steps are linear, and the weights of
    the bilinear mean add up to 1.
    """

    task, Config = "depth", LinearDepthConfig
    uses_patches = True
    centres: Tensor

    def __init__(self, config: LinearDepthConfig, embed_dim: int, num_classes: int) -> None:
        super().__init__(config, embed_dim, num_classes)
        width = embed_dim * len(config.blocks)
        self.patch_layer = nn.Conv2d(width, config.bins, 1)
        self.cls_layer = nn.Linear(width, config.bins, bias=False)  # the same for every patch: one layer, split
        nn.init.normal_(self.patch_layer.weight, std=0.01)
        nn.init.normal_(self.cls_layer.weight, std=0.01)
        nn.init.zeros_(self.patch_layer.bias)  # type: ignore[arg-type]
        self.register_buffer("centres", torch.linspace(*config.limits(), config.bins))

    def forward(self, features: Features) -> Tensor:
        assert features.patches is not None
        logits = self.patch_layer(features.patches) + self.cls_layer(features.cls)[:, :, None, None]
        weights = interpolate(logits, scale_factor=UPSAMPLING, mode="bilinear").relu() + MIN_SHARE
        mean = torch.einsum("bkhw,k->bhw", weights, self.centres) / weights.sum(1)
        return mean[:, None].clamp(*self.config.limits())  # rounding alone can leave the range


class FourLinearDepthConfig(LinearDepthConfig):
    """`blocks` empty: the quarters of the backbone's depth."""

    name: str = "linear4"
    blocks: tuple[int, ...] = Field((), description="empty: a quarter, half, three quarters and all of the depth")


@ADAPTERS.register("depth.linear4")
class FourLinearDepth(PyramidAdapter, LinearDepth):
    """The linear head on four blocks."""

    Config = FourLinearDepthConfig


class DPTDepthConfig(DPTConfig, DepthHeadConfig):
    """DPT's settings, and the range."""


@ADAPTERS.register("depth.dpt")
class DPTDepth(PyramidAdapter):
    """DPT, its depth head (Ranftl et al., section 3.2), and a sigmoid over the range."""

    task, Config = "depth", DPTDepthConfig

    def __init__(self, config: DPTDepthConfig, embed_dim: int, num_classes: int) -> None:
        super().__init__(config, embed_dim, num_classes)
        self.dpt = DPT(embed_dim, config.channels)
        self.first = nn.Conv2d(config.channels, config.channels // 2, 3, padding=1)
        self.last = nn.Sequential(
            nn.Conv2d(config.channels // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1)
        )  # fmt: skip

    def forward(self, features: Features) -> Tensor:
        x = interpolate(self.first(self.dpt(split_blocks(features, 4))), scale_factor=2, mode="bilinear")
        low, high = self.config.limits()
        return low + (high - low) * self.last(x).sigmoid()


def with_range(head: Any, low: float, high: float) -> Any:
    """The config with what is not set of its range filled in."""
    filled = {"low": head.low or low, "high": head.high or high}
    return type(head).model_validate(head.model_dump() | filled)
