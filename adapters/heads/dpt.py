"""DPT (Ranftl et al. 2021, "Vision Transformers for Dense Prediction", section 3), as DINOv2 uses it for depth.

In each of four blocks, the class token is merged into the patch tokens ("project" readout). The four blocks become a
pyramid: its levels have 4, 2, 1 and 1/2 times the side of the patch grid, and D/8, D/4, D/2 and D channels. All levels
are projected to the same number of channels and fused from the coarsest to the finest. The last fusion doubles the
side again, to 8 times the side of the patch grid.
"""

from typing import Any

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dinomed.adapters.adapter import ADAPTERS, Adapter, HeadConfig, split_blocks
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.features.compute import Features

_QUARTERS = {24: (4, 11, 17, 23)}  # blocks of the reference code for ViT-L


def quarter_blocks(depth: int) -> tuple[int, ...]:
    """Return the blocks, counted from 0, at 1/4, 1/2, 3/4 and 1 of the depth; for ViT-L those of the reference code.

    >>> quarter_blocks(12), quarter_blocks(40)
    ((2, 5, 8, 11), (9, 19, 29, 39))
    """
    return _QUARTERS.get(depth) or tuple(max(-(-depth * k // 4), 1) - 1 for k in (1, 2, 3, 4))


class PyramidConfig(HeadConfig):
    """Settings of heads on four blocks; if `blocks` is empty, `quarter_blocks` selects them."""

    blocks: tuple[int, ...] = Field((), description="empty: blocks at 1/4, 1/2, 3/4 and 1 of the depth")


class DPTConfig(PyramidConfig):
    """Settings of DPT; `channels` is the number of channels of the fusion (256 in the paper)."""

    name: str = "dpt"
    channels: int = Field(256, ge=8, multiple_of=2, description="channels of the fusion; 256 in the paper")

    @field_validator("blocks")
    @classmethod
    def _four(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        if len(blocks) not in (0, 4):
            raise ValueError(f"blocks: DPT needs four blocks, not {len(blocks)}; use [] for the default blocks")
        return blocks


class PyramidAdapter(Adapter):
    """A head whose default blocks depend on the depth of the backbone."""

    uses_patches = True

    @classmethod
    def resolve_config(cls, config: Any, backbone: FrozenBackbone) -> Any:
        return config if config.blocks else config.model_copy(update={"blocks": quarter_blocks(backbone.depth)})


class DPT(nn.Module):
    """Fusion of the features of four blocks to a map (B, channels, 8 * rows, 8 * columns).

    The first block becomes the finest level.
    """

    def __init__(self, embed_dim: int, channels: int) -> None:
        super().__init__()
        widths = [max(embed_dim // divisor, 1) for divisor in (8, 4, 2, 1)]
        self.readouts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * embed_dim, embed_dim, 1), nn.GELU()) for _ in widths
        )  # a linear layer on each patch
        self.projects = nn.ModuleList(nn.Conv2d(embed_dim, width, 1) for width in widths)
        self.resizes = nn.ModuleList(
            [
                nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
                nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
            ]
        )
        self.convs = nn.ModuleList(nn.Conv2d(width, channels, 3, padding=1, bias=False) for width in widths)
        self.fusions = nn.ModuleList(_Fusion(channels, with_skip=k < 3) for k in range(4))
        self.project = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())

    def forward(self, blocks: list[Features]) -> Tensor:
        levels = []
        layers = zip(self.readouts, self.projects, self.resizes, self.convs, strict=True)
        for features, (readout, project, resize, conv) in zip(blocks, layers, strict=True):
            assert features.patches is not None
            cls = features.cls[:, :, None, None].expand_as(features.patches)
            levels.append(conv(resize(project(readout(torch.cat([features.patches, cls], dim=1))))))
        rows, columns = levels[0].shape[-2:]
        sizes = [(2 * rows, 2 * columns), *(tuple(level.shape[-2:]) for level in levels[:-1])]
        x = None
        for k in (3, 2, 1, 0):
            x = self.fusions[k](levels[k], x, sizes[k])
        return self.project(x)


class _Fusion(nn.Module):
    """Fusion step: residual unit of a level, plus the coarser result, then a residual unit and a resize to `size`."""

    def __init__(self, channels: int, with_skip: bool) -> None:
        super().__init__()
        self.skip = _Residual(channels) if with_skip else None
        self.unit = _Residual(channels)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, level: Tensor, coarser: Tensor | None, size: tuple[int, ...]) -> Tensor:
        x = level
        if self.skip is not None:
            assert coarser is not None
            x = coarser + self.skip(level)
        return self.project(interpolate(self.unit(x), (size[0], size[1]), mode="bilinear", align_corners=True))


class _Residual(nn.Module):
    """Residual unit of two 3x3 convolutions, each after an activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convs(x)


@ADAPTERS.register("segment.dpt")
class DPTSegmenter(PyramidAdapter):
    """DPT with one logit for each class."""

    task, Config = "segment", DPTConfig

    def __init__(self, config: DPTConfig, embed_dim: int, num_classes: int) -> None:
        super().__init__(config, embed_dim, num_classes)
        self.dpt = DPT(embed_dim, config.channels)
        self.head = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(config.channels, num_classes, 1))

    def forward(self, features: Features) -> Tensor:
        return self.head(self.dpt(split_blocks(features, 4)))
