"""Features of a batch of images: one forward pass of the frozen backbone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dinomed.backbones.frozen import FrozenBackbone


@dataclass(frozen=True)
class Features:
    """Features of B images from K blocks of width C, concatenated along the channels in the order of the blocks.

    Attributes:
        cls: class tokens (B, K * C).
        mean: mean patch tokens (B, K * C).
        patches: patch tokens (B, K * C, rows, columns), or None.
        images: preprocessed images (B, channels, height, width), for heads that also read the image; or None.
    """

    cls: Tensor
    mean: Tensor
    patches: Tensor | None = None
    images: Tensor | None = None


def compute_features(backbone: FrozenBackbone, images: Tensor, blocks: Sequence[int], patches: bool) -> Features:
    """Compute the features of preprocessed images (B, channels, height, width), in float32.

    Args:
        blocks: blocks whose tokens are concatenated: 0 is the first, -1 the last.
        patches: return patch tokens too.
    """
    images = images.to(backbone.device)
    tokens = backbone(images, blocks)
    grid = backbone.grid((images.shape[-2], images.shape[-1]))
    flat = torch.cat([t.patches for t in tokens], dim=-1)
    return Features(
        cls=torch.cat([t.cls for t in tokens], dim=-1),
        mean=flat.mean(dim=1),
        patches=flat.transpose(1, 2).unflatten(2, grid) if patches else None,
        images=images,
    )
