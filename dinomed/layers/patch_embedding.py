"""Patch embeddings of images: a linear layer on each patch, or convolutions; and resizing of the position embedding to
any grid."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate


class PatchEmbedding(nn.Module):
    """A convolution with the patch size as kernel and stride: (B, channels, height, width) -> (B, rows * columns,
    C)."""

    def __init__(self, patch_size: int, in_channels: int, dim: int) -> None:
        super().__init__()
        self.patch_size, self.in_channels = patch_size, in_channels
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def grid(self, images: Tensor) -> Tensor:
        """Return the tokens as a grid (B, C, rows, columns)."""
        tokens: Tensor = self.proj(images)
        return tokens

    def forward(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Return the tokens (B, rows * columns, C).

        Args:
            hidden: bool (B, patches): patches whose pixels the tokens of other patches must not depend on.

        Raises:
            ValueError: wrong number of channels, or a side that is not a multiple of the patch size.
        """
        self.check(images)
        shown = images if hidden is None else self.hide(images, hidden)
        return self.grid(shown).flatten(2).transpose(1, 2)

    def hide(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Return the images as they are: a token reads its own patch only."""
        return images

    def check(self, images: Tensor) -> None:
        """Raise a `ValueError` for a wrong number of channels, or a side that is not a multiple of the patch size."""
        _, channels, height, width = images.shape
        if channels != self.in_channels:
            raise ValueError(f"images have {channels} channels, the backbone takes {self.in_channels}")
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"image size {height}x{width} is not divisible by the patch size {self.patch_size}")


class ConvolutionalPatchEmbedding(PatchEmbedding):
    """4 x 4 convolutions of stride 2, each with a norm over channels and GELU, until a pixel is a patch; then a 1 x 1
    convolution (Xiao et al. 2021, arXiv 2106.14881, there 3 x 3 with batch norm and ReLU).

    A token reads its patch and ``patch_size - 1`` px on each side. With 3 x 3 the patch is not in the middle, so a
    map of tokens is shifted by half a patch. The pixels of hidden patches are set to zero first. Otherwise a
    visible token would show a part of the masked patch that is to be predicted.

    Args:
        patch_size: a power of 2, px.
        dim: channels C of a token; the first convolution has ``2 * dim / patch_size``, and each further one twice as
            many.
    """

    def __init__(self, patch_size: int, in_channels: int, dim: int) -> None:
        super().__init__(1, dim, dim)
        self.patch_size, self.in_channels = patch_size, in_channels
        halvings = patch_size.bit_length() - 1
        widths = [in_channels, *(dim // 2**left for left in reversed(range(halvings)))]
        self.convs = nn.ModuleList(
            nn.Conv2d(narrow, wide, kernel_size=4, stride=2, padding=1) for narrow, wide in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(wide) for wide in widths[1:])

    def grid(self, images: Tensor) -> Tensor:
        """Return the tokens as a grid (B, C, rows, columns)."""
        x = images
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = gelu(norm(conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return super().grid(x)

    def hide(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Return the images with zeros in the `hidden` patches, bool (B, patches)."""
        return hide_patches(images, hidden, self.patch_size)


def hide_patches(images: Tensor, hidden: Tensor, patch_size: int) -> Tensor:
    """Set the pixels of patches to zero, which is the mean colour of normalised images.

    Args:
        images: (B, channels, height, width).
        hidden: bool (B, patches), row by row.
    """
    rows, columns = (side // patch_size for side in images.shape[-2:])
    pixels = hidden.view(-1, 1, rows, columns)
    for axis in (2, 3):
        pixels = pixels.repeat_interleave(patch_size, dim=axis)
    return torch.where(pixels, images.new_zeros(()), images)


def resize_position_embedding(
    grid: Tensor, size: tuple[int, int], *, antialias: bool = True, offset: float = 0.0
) -> Tensor:
    """Resize a position embedding, (1, side * side, C) -> (1, rows * columns, C), bicubic, in float32.

    The released DINOv2 models without registers were trained with ``offset=0.1, antialias=False``, those with registers
    with ``offset=0, antialias=True``. The sampling differs, so it is a property of the weights (see `ViTConfig`).
    """
    side = int(grid.shape[1] ** 0.5)
    if size == (side, side):
        return grid
    image = grid.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if offset:
        scale = [(n + offset) / side for n in size]
        image = interpolate(image, scale_factor=scale, mode="bicubic", antialias=antialias)
    else:
        image = interpolate(image, size=size, mode="bicubic", antialias=antialias)
    assert image.shape[-2:] == size
    return image.flatten(2).transpose(1, 2).to(grid.dtype)
