"""Spatial branch on the image itself, for details that are finer than a patch.

The tokens of a frozen ViT have one position for each patch of 8 to 16 px. A small convolutional branch on the image
adds levels at 1/2, 1/4 and 1/8 of it, as the spatial prior of the ViT-Adapter does (Chen et al. 2023, section 3.2; used
with frozen DINOv3 in Dino U-Net, arXiv 2508.20909). It is part of the head and is trained with it.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

DETAIL_STRIDES = (2, 4, 8)
"""Strides of the maps of the branch, px."""
WIDTH = 16
"""Channels of the branch at 1/2 of the image; twice as many at each coarser level."""


class DetailBranch(nn.Module):
    """Convolutions from images (B, channels, H, W) to maps at 1/2, 1/4 and 1/8, of widths w, 2w and 4w.

    GroupNorm is used instead of BatchNorm: its result does not depend on the other images of the batch.
    """

    def __init__(self, channels: int, width: int = WIDTH) -> None:
        super().__init__()
        self.widths = (width, 2 * width, 4 * width)
        self.stages = nn.ModuleList(
            nn.Sequential(*conv(before, after, stride=2), *conv(after, after))
            for before, after in zip((channels, *self.widths[:-1]), self.widths, strict=True)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        levels = []
        x = images
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return levels


class Fusion(nn.Module):
    """Concatenation of a level with a map of the branch, resized to it, and a 1x1 convolution to the level's width.

    The convolution starts as the identity on the level, so that the branch adds nothing before training.
    """

    def __init__(self, level: int, detail: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(level + detail, level, 1)
        with torch.no_grad():
            self.mix.weight[:, :level, 0, 0] = torch.eye(level)
            self.mix.weight[:, level:] *= 0.1
            self.mix.bias.zero_()  # type: ignore[union-attr]

    def forward(self, level: Tensor, detail: Tensor) -> Tensor:
        detail = interpolate(detail, (level.shape[-2], level.shape[-1]), mode="bilinear")
        return self.mix(torch.cat([level, detail], dim=1))


def standardise_tokens(channels: int) -> nn.Module:
    """Return a layer that standardises each channel of the tokens over the patches of an image.

    Light and colour of a device move all tokens of an image alike. Without this step a head learns these levels, and
    marks too much on images of another device (docs/results.md, "Label efficiency").
    """
    return nn.InstanceNorm2d(channels)


def conv(before: int, after: int, stride: int = 1) -> list[nn.Module]:
    """Return the layers of a 3x3 convolution with GroupNorm and ReLU."""
    groups = next(count for count in (8, 4, 2, 1) if after % count == 0)
    return [
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), nn.GroupNorm(groups, after), nn.ReLU()
    ]  # fmt: skip
