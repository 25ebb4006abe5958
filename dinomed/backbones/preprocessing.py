"""Preprocessing of images for a backbone: channels, range, resizing to a square, normalisation."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from dinomed.config import Config
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.pixels import read_row
from dinomed.images.intensity import IntensityConfig, match_channels
from dinomed.images.read import read_image
from dinomed.isolation.images import read_image_isolated

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ADDED_SETTINGS = ("intensity", "interpolation")
"""Fields of `Preprocessing` that do not count for a fingerprint while they have their defaults."""


class Preprocessing(Config):
    """Preprocessing that resizes the whole image to a square, so that nothing at the border is lost.

    8-bit images are resized as such, antialiased, by torchvision. This is four times as fast as Pillow and
    differs from it by one grey level at most (two where it enlarges). Images of 16 bits are resized as floating-point
    numbers and clipped to their range.
    """

    image_size: int = Field(224, ge=1, description="side of the square, px")
    mean: tuple[float, ...] = Field(IMAGENET_MEAN, description="of each channel, in 0 to 1")
    std: tuple[float, ...] = Field(IMAGENET_STD, description="of each channel, in 0 to 1")
    channels: int = Field(3, ge=1)
    interpolation: Literal["bicubic", "bilinear"] = Field("bicubic", description="how images are resized, antialiased")
    intensity: IntensityConfig = Field(IntensityConfig(), description="how images are read: depth, window")

    @model_validator(mode="after")
    def _channels(self) -> "Preprocessing":
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"{self.channels} channels need as many values in mean and in std")
        if not all(1e-6 <= std <= 100 and abs(mean) <= 100 for mean, std in zip(self.mean, self.std, strict=True)):
            raise ValueError("mean and std are of values in 0 to 1: std must be positive, and both at most 100")
        return self

    def read(self, path: str | Path) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Read an image file with these channels and this intensity; see `dinomed.images.read.read_image`.

        Returns:
            (height, width, channels).
        """
        return read_image(path, channels=self.channels, intensity=self.intensity)

    def read_row(self, manifest: Manifest, row: int) -> np.ndarray:
        """Read an image of a manifest like `read`; see `dinomed.datasets.pixels.read_row`."""
        return read_row(manifest, row, channels=self.channels, intensity=self.intensity)

    def read_isolated(self, path: str | Path) -> np.ndarray:
        """Read an image file from outside like `read`, in a process with limits on memory and time.

        Raises:
            UnreadableImage: as `read`, or the file exceeds a limit.
        """
        return read_image_isolated(path, channels=self.channels, intensity=self.intensity)

    def __call__(self, image: NDArray[np.uint8] | NDArray[np.float32]) -> "Tensor":
        """Preprocess an image: resize it to the square and normalise it.

        Args:
            image: (height, width, channels), uint8, or float32 in 0 to 1.

        Returns:
            float32 (channels, image_size, image_size).
        """
        return self.normalise(self.squash(image))

    def stack(self, images: Sequence[np.ndarray]) -> "Tensor":
        """Preprocess images of any sizes into one batch (B, channels, image_size, image_size)."""
        import torch

        return torch.stack([self(image) for image in images])

    def squash(self, image: NDArray[np.uint8] | NDArray[np.float32]) -> "Tensor":
        """Resize an image to the square, (height, width, channels) -> (channels, image_size, image_size), in its type
        and range."""
        # Imported here: the settings of pretraining are read without torch.
        import torch
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2.functional import resize

        pixels = torch.from_numpy(np.array(match_channels(image, self.channels))).permute(2, 0, 1)
        size = [self.image_size, self.image_size]
        small = resize(pixels, size, interpolation=InterpolationMode(self.interpolation), antialias=True)
        return small.clamp(0, 1) if small.is_floating_point() else small  # bicubic interpolation overshoots

    def normalise(self, image: "Tensor") -> "Tensor":
        """Normalise an image (channels, height, width), uint8 or float32 in 0 to 1, by `mean` and `std`, to float32."""
        import torch

        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        unit = image if image.is_floating_point() else image.float() / 255
        return ((unit - mean) / std).contiguous()
