"""Features of a batch of images: one forward pass of the frozen backbone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dinomed.backbones.frozen import FrozenBackbone
from dinomed.features.finite import check_finite


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


def compute_features(
    backbone: FrozenBackbone, images: Tensor, blocks: Sequence[int], patches: bool, *, check: bool = True
) -> Features:
    """Compute the features of preprocessed images (B, channels, height, width), in float32.

    Args:
        blocks: blocks whose tokens are concatenated: 0 is the first, -1 the last.
        patches: return patch tokens too.
        check: check that the features are finite; a training step checks its loss instead.

    Raises:
        NotFiniteError: the features of an image are not finite.
    """
    images = images.to(backbone.device)
    tokens = backbone(images, blocks)
    grid = backbone.grid((images.shape[-2], images.shape[-1]))
    flat = torch.cat([t.patches for t in tokens], dim=-1)
    features = Features(
        cls=torch.cat([t.cls for t in tokens], dim=-1),
        mean=flat.mean(dim=1),
        patches=flat.transpose(1, 2).unflatten(2, grid) if patches else None,
        images=images,
    )
    if check:
        check_features(features)
    return features


def check_features(features: Features) -> None:
    """Check the class tokens and the mean patch tokens; a patch token that is not finite shows in its mean.

    Raises:
        NotFiniteError: the features of an image are not finite.
    """
    check_finite("features", torch.cat([features.cls, features.mean], dim=1))
