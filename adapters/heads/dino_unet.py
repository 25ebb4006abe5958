"""Dino U-Net (Gao et al. 2025, arXiv 2508.20909): a U-Net decoder on frozen blocks and a branch on the image.

The tokens of four blocks of the frozen ViT are projected to one width and mixed on the patch grid. A U-Net decoder
brings them to 1/8, 1/4 and 1/2 of the image, where it concatenates the maps of a small convolutional branch on the
image itself. The structure is that of the paper; its attention between branch and tokens and its projection module are
replaced by convolutions, which suit small collections and a CPU.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dinomed.adapters.adapter import ADAPTERS, split_blocks
from dinomed.adapters.heads.detail import WIDTH, DetailBranch, conv, standardise_tokens
from dinomed.adapters.heads.dpt import PyramidAdapter, PyramidConfig
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.features.compute import Features


class DinoUNetConfig(PyramidConfig):
    """Settings: `channels` of the decoder, from the patch grid to 1/2 of the image; `detail_channels` of the branch at
    1/2 of the image; `image_channels`, set by the backbone."""

    name: str = "dino_unet"
    channels: tuple[int, int, int] = Field((96, 48, 24), description="at 1/8, 1/4 and 1/2 of the image")
    detail_channels: int = Field(WIDTH, ge=4, description="channels of the convolutional branch at 1/2 of the image")
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
        eighth, quarter, half = config.channels
        self.detail = DetailBranch(config.image_channels or 3, config.detail_channels)
        first, second, third = self.detail.widths
        count = len(config.blocks)
        self.projections = nn.ModuleList(nn.Sequential(*conv1(embed_dim, eighth)) for _ in range(count))
        self.context = nn.Sequential(*conv(count * eighth, eighth), *conv(eighth, eighth))
        self.fuse_eighth = nn.Sequential(*conv(eighth + third, eighth), *conv(eighth, eighth))
        self.fuse_quarter = nn.Sequential(*conv(eighth + second, quarter), *conv(quarter, quarter))
        self.fuse_half = nn.Sequential(*conv(quarter + first, half), *conv(half, half))
        self.last = nn.Conv2d(half, num_classes, 1)

    def forward(self, features: Features) -> Tensor:
        assert features.images is not None
        half, quarter, eighth = self.detail(features.images)
        tokens = [
            projection(block.patches)
            for projection, block in zip(self.projections, split_blocks(features, len(self.projections)), strict=True)
        ]
        x = self.context(torch.cat(tokens, dim=1))
        for level, stage in ((eighth, self.fuse_eighth), (quarter, self.fuse_quarter), (half, self.fuse_half)):
            x = interpolate(x, (level.shape[-2], level.shape[-1]), mode="bilinear")
            x = stage(torch.cat([x, level], dim=1))
        return self.last(x)


def conv1(before: int, after: int) -> list[nn.Module]:
    """Return the layers of a 1x1 convolution of standardised tokens."""
    return [standardise_tokens(before), nn.Conv2d(before, after, 1), nn.ReLU()]
