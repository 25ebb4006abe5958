"""Patch embedding of images, and resizing of the position embedding to any grid."""

from torch import Tensor, nn
from torch.nn.functional import interpolate


class PatchEmbedding(nn.Module):
    """A convolution with the patch size as kernel and stride: (B, channels, height, width) -> (B, rows * columns,
    C)."""

    def __init__(self, patch_size: int, in_channels: int, dim: int) -> None:
        super().__init__()
        self.patch_size, self.in_channels = patch_size, in_channels
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        _, channels, height, width = images.shape
        if channels != self.in_channels:
            raise ValueError(f"images have {channels} channels, the backbone takes {self.in_channels}")
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"image size {height}x{width} is not divisible by the patch size {self.patch_size}")
        return self.proj(images).flatten(2).transpose(1, 2)


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
