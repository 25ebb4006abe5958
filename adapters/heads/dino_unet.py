"""Dino U-Net (Gao et al. 2025, arXiv 2508.20909): a U-Net decoder on frozen blocks and a branch on the image.

The tokens of four blocks of the frozen ViT are projected to one width and mixed on the patch grid. A U-Net decoder
concatenates them with the maps of a convolutional branch on the image itself at 1/8 of the image, and goes on to 1/2.
The structure is that of the paper; its attention between branch and tokens and its projection module are replaced by
convolutions, which suit small collections and a CPU. The branch has few channels and ends at 1/8 of the image; with
`encoder` it is that of a whole U-Net and ends at 1/32, so that the head is a U-Net to which frozen features are added.
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dinomed.adapters.adapter import ADAPTERS, split_blocks
from dinomed.adapters.heads.detail import WIDTH, DetailBranch, EncoderBranch, conv, standardise_tokens
from dinomed.adapters.heads.dpt import PyramidAdapter, PyramidConfig
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.features.compute import Features


class DinoUNetConfig(PyramidConfig):
    """Settings: `channels` of the decoder, from 1/8 to 1/2 of the image; `detail_channels` of the small branch at 1/2
    of the image, or an `encoder` as the branch; `image_channels`, set by the backbone."""

    name: str = "dino_unet"
    channels: tuple[int, int, int] = Field((96, 48, 24), description="at 1/8, 1/4 and 1/2 of the image")
    detail_channels: int = Field(WIDTH, ge=4, description="channels of the convolutional branch at 1/2 of the image")
    encoder: Literal["resnet18", "resnet34", "resnet50"] | None = Field(
        None, description="the branch is this encoder with random weights; null: a small branch of detail_channels"
    )
    image_channels: int | None = Field(None, ge=1, description="channels of the images; null: of the backbone")


@ADAPTERS.register("segment.dino_unet")
class DinoUNet(PyramidAdapter):
    """Tokens of four blocks, fused at 1/8 of the image, and a U-Net decoder to 1/2 with a branch on the image."""

    task, Config = "segment", DinoUNetConfig
    uses_images = True

    @classmethod
    def resolve_config(cls, config: Any, backbone: FrozenBackbone) -> Any:
        config = super().resolve_config(config, backbone)
        return config.model_copy(update={"image_channels": backbone.preprocessing.channels})

    def __init__(self, config: DinoUNetConfig, embed_dim: int, num_classes: int) -> None:
        super().__init__(config, embed_dim, num_classes)
        eighth, count, channels = config.channels[0], len(config.blocks), config.image_channels or 3
        self.detail: DetailBranch | EncoderBranch = (
            DetailBranch(channels, config.detail_channels)
            if config.encoder is None
            else EncoderBranch(channels, config.encoder)
        )
        self.projections = nn.ModuleList(nn.Sequential(*conv1(embed_dim, eighth)) for _ in range(count))
        self.context = nn.Sequential(*conv(count * eighth, eighth), *conv(eighth, eighth))
        coarse = [2 * eighth] * (len(self.detail.widths) - 3)  # at 1/32 and 1/16, only of an encoder
        widths = [*coarse, *config.channels]
        before = [0, *widths[:-1]]
        self.stages = nn.ModuleList(
            nn.Sequential(*conv(below + level + (eighth if k == len(coarse) else 0), width), *conv(width, width))
            for k, (below, level, width) in enumerate(zip(before, reversed(self.detail.widths), widths, strict=True))
        )
        self.last = nn.Conv2d(widths[-1], num_classes, 1)

    def forward(self, features: Features) -> Tensor:
        assert features.images is not None
        levels = self.detail(features.images)
        tokens = [
            projection(block.patches)
            for projection, block in zip(self.projections, split_blocks(features, len(self.projections)), strict=True)
        ]
        context, x = self.context(torch.cat(tokens, dim=1)), None
        for k, (level, stage) in enumerate(zip(reversed(levels), self.stages, strict=True)):
            inputs = [level] if x is None else [resized(x, level), level]
            if k == len(levels) - 3:  # at 1/8 of the image
                inputs.append(resized(context, level))
            x = stage(torch.cat(inputs, dim=1))
        assert x is not None
        return self.last(x)


def resized(x: Tensor, level: Tensor) -> Tensor:
    """Resize maps to the size of a level."""
    return interpolate(x, (level.shape[-2], level.shape[-1]), mode="bilinear")


def conv1(before: int, after: int) -> list[nn.Module]:
    """Return the layers of a 1x1 convolution of standardised tokens."""
    return [standardise_tokens(before), nn.Conv2d(before, after, 1), nn.ReLU()]
