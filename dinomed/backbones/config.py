"""Settings of the ViT and of LoRA. This module imports no torch: the settings of runs and fits are read without it."""

import math
from typing import Literal

from pydantic import Field, model_validator

from dinomed.config import Config

Target = Literal["qkv", "proj", "fc1", "fc2", "w12", "w3"]


class LoraConfig(Config):
    """Settings of LoRA: `W` becomes ``W + (alpha / rank) B A``, where A has `rank` rows and B starts at zero."""

    rank: int = Field(8, ge=1, description="rank r of the update of a weight matrix; more ranks, more trained weights")
    alpha: float = Field(16.0, gt=0, description="scale of the update, which is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of the input of A, in training")
    targets: tuple[Target, ...] = Field(
        ("qkv", "proj"), description="linear layers of each block: qkv and proj of the attention; fc1 and fc2 of an "
        "MLP, w12 and w3 of a SwiGLU"
    )  # fmt: skip

    @model_validator(mode="after")
    def _some(self) -> "LoraConfig":
        if not self.targets:
            raise ValueError("targets is empty; name at least one linear layer, or remove lora")
        return self


MAX_IMAGE_SIZE = 8192
"""Largest side of an image that a backbone takes, px; the tokens of such an image need gigabytes."""


class ViTConfig(Config):
    """Architecture of a ViT; the weights need nothing else to run.

    The upper bounds are far above any trained model, and low enough to refuse a mistyped number.
    """

    embed_dim: int = Field(384, ge=8, le=16_384, description="channels of a token")
    depth: int = Field(12, ge=1, le=512, description="number of blocks")
    num_heads: int = Field(6, ge=1, description="attention heads of each block")
    patch_size: int = Field(14, ge=1, le=512, description="side of a patch, px")
    image_size: int = Field(
        224, ge=8, le=MAX_IMAGE_SIZE, description="side of the square image that the position embedding is for, px"
    )
    in_channels: int = Field(3, ge=1, le=1024, description="channels of the images")
    num_registers: int = Field(0, ge=0, le=1024, description="register tokens")
    feed_forward: Literal["mlp", "swiglu"] = Field("mlp", description="kind of the feed-forward layers of the blocks")
    mlp_ratio: float = Field(
        4.0,
        gt=0,
        le=64,
        description="width of the feed-forward layers, as a multiple of embed_dim; swiglu uses two thirds of it",
    )
    layerscale: float | None = Field(1e-5, description="initial value; null: no LayerScale")
    norm_eps: float = Field(1e-6, gt=0, lt=1, description="epsilon of the layer norms (a property of weights)")
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth, the same in every block; training only")
    stem: Literal["linear", "convolutional"] = Field(
        "linear",
        description="patch embedding: one linear layer on each patch, as in the published ViTs, or 4 x 4 convolutions, "
        "which also read pixels around it (arXiv 2106.14881); the patch size is then a power of 2",
    )
    position: Literal["learned", "rope"] = Field(
        "learned", description="position embedding: a learned table that is resized, or rotary positions as in DINOv3"
    )
    rope_theta: float = Field(100.0, gt=1, description="base of the periods of rotary positions")
    position_antialias: bool = Field(True, description="how the position embedding is resized (a property of weights)")
    position_offset: float = Field(0.0, ge=0, description="0.1 in the released plain models, else 0")

    @model_validator(mode="after")
    def _divisible(self) -> "ViTConfig":
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not divisible by patch_size {self.patch_size}")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        if self.stem == "convolutional":
            self._check_halvings()
        if self.position == "rope" and self.embed_dim // self.num_heads % 4:
            raise ValueError(
                f"rotary positions need heads of a multiple of 4 channels, not {self.embed_dim // self.num_heads}"
            )
        return self

    def _check_halvings(self) -> None:
        halvings = self.patch_size.bit_length() - 1
        if halvings < 1 or self.patch_size != 2**halvings:
            raise ValueError(
                f"stem convolutional: patch_size {self.patch_size} is not a power of 2 from 2 on (such as 8 or 16); "
                "change it, or use stem linear"
            )
        if self.embed_dim % 2 ** (halvings - 1):
            raise ValueError(
                f"stem convolutional: embed_dim {self.embed_dim} is not divisible by {2 ** (halvings - 1)}, half "
                "of the patch size"
            )


def grid_side(num_patches: int) -> int | None:
    """Return the side of a square grid of patches; None if the number is no square."""
    side = math.isqrt(max(num_patches, 0))
    return side if side > 0 and side * side == num_patches else None
