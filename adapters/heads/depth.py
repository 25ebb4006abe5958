"""Depth heads (DINOv2, section 7.4 and its reference code): linear on one or four blocks, and DPT.

Their depths are always in the range `low` to `high`. In the reference code the bins of the linear head do not depend on
the configured range, and the depths of DPT have no upper limit.
"""

from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dinomed.adapters.adapter import ADAPTERS, Adapter, HeadConfig, split_blocks
from dinomed.adapters.heads.dpt import DPT, DPTConfig, PyramidAdapter
from dinomed.errors import UsageError
from dinomed.features.compute import Features

UPSAMPLING, MIN_WEIGHT = 4, 0.1


class DepthHeadConfig(HeadConfig):
    """Range of depths from `low` to `high`, in the unit of the data; null: the range of the training maps."""

    low: float | None = Field(
        None, gt=0, description="smallest depth, in the unit of the data; null: that of the training maps"
    )
    high: float | None = Field(
        None, gt=0, description="largest depth, in the unit of the data; null: that of the training maps"
    )

    @model_validator(mode="after")
    def _range(self) -> "DepthHeadConfig":
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self

    def limits(self) -> tuple[float, float]:
        """Return the range, which is set before a head is built."""
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high


class LinearDepthConfig(DepthHeadConfig):
    """Settings: `bins`, the number of depths, evenly spaced over the range, that are weighted for each pixel."""

    bins: int = Field(256, ge=2, description="depths, evenly spaced over the range, that are weighted for each pixel")


@ADAPTERS.register("depth.linear")
class LinearDepth(Adapter):
    """A linear layer on patch token and class token, with one logit for each bin, upsampled 4 times.

    The depth is the mean of the bins, weighted by relu(logit) + 0.1. Upsampling the logits is equal to upsampling the
    tokens, as the reference code does: both steps are linear, and bilinear weights sum to 1.
    """

    task, Config = "depth", LinearDepthConfig
    uses_patches = True
    fit_defaults: ClassVar = {"batch_size": 16, "min_steps": 500}
    centres: Tensor

    def __init__(self, config: LinearDepthConfig, embed_dim: int, num_classes: int) -> None:
        super().__init__(config, embed_dim, num_classes)
        width = embed_dim * len(config.blocks)
        self.patch_layer = nn.Conv2d(width, config.bins, 1)
        self.cls_layer = nn.Linear(
            width, config.bins, bias=False
        )  # the same for every patch, so it is a separate layer
        nn.init.normal_(self.patch_layer.weight, std=0.01)
        nn.init.normal_(self.cls_layer.weight, std=0.01)
        nn.init.zeros_(self.patch_layer.bias)  # type: ignore[arg-type]
        self.register_buffer("centres", torch.linspace(*config.limits(), config.bins))

    def forward(self, features: Features) -> Tensor:
        assert features.patches is not None
        logits = self.patch_layer(features.patches) + self.cls_layer(features.cls)[:, :, None, None]
        weights = interpolate(logits, scale_factor=UPSAMPLING, mode="bilinear").relu() + MIN_WEIGHT
        mean = torch.einsum("bkhw,k->bhw", weights, self.centres) / weights.sum(1)
        return mean[:, None].clamp(*self.config.limits())  # rounding can leave the range


class FourLinearDepthConfig(LinearDepthConfig):
    """Settings of the linear head on four blocks; empty `blocks` are the quarters of the depth of the backbone."""

    name: str = "linear4"
    blocks: tuple[int, ...] = Field((), description="empty: blocks at 1/4, 1/2, 3/4 and 1 of the depth")


@ADAPTERS.register("depth.linear4")
class FourLinearDepth(PyramidAdapter, LinearDepth):
    """The linear head on four blocks."""

    Config = FourLinearDepthConfig


class DPTDepthConfig(DPTConfig, DepthHeadConfig):
    """Settings of DPT, and the range of depths."""


@ADAPTERS.register("depth.dpt")
class DPTDepth(PyramidAdapter):
    """DPT with its depth head (Ranftl et al., section 3.2), and a sigmoid scaled to the range."""

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
    """Return the config with missing limits of the range filled in, by `low` and `high` of the training maps.

    Raises:
        UsageError: the limit that is set is not on its side of the other one.
    """
    filled = {"low": head.low or low, "high": head.high or high}
    if filled["low"] >= filled["high"]:
        problem = (
            f"`head.low={head.low:g}` is not below {high:g}, the largest"
            if head.high is None
            else f"`head.high={head.high:g}` is not above {low:g}, the smallest"
        )
        own, other = ("low", "high") if head.high is None else ("high", "low")
        raise UsageError(
            f"{problem} depth of the training maps; set head.{other} too, or correct head.{own} or the setting scale"
        )
    return type(head).model_validate(head.model_dump() | filled)
