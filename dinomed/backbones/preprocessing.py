"""From an image as it was read to what a backbone takes: channels, square resize, normalisation."""

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from dinomed.config import Config
from dinomed.errors import UsageError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601, as in Pillow's "L"


class Preprocessing(Config):
    """The whole image, squashed to a square: nothing at the border is lost, and every patch has its place.

    Resized as 8-bit, bicubic and antialiased by torchvision, four times as fast as Pillow, within one grey level of it
    (two where it enlarges).
    """

    image_size: int = Field(224, ge=1, description="side of the square, px")
    mean: tuple[float, ...] = Field(IMAGENET_MEAN, description="of each channel, in 0 to 1")
    std: tuple[float, ...] = Field(IMAGENET_STD, description="of each channel, in 0 to 1")
    channels: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _channels(self) -> "Preprocessing":
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"{self.channels} channels need as many values in mean and in std")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self

    def __call__(self, image: NDArray[np.uint8]) -> Tensor:
        """uint8 (height, width, channels) -> float32 (channels, image_size, image_size), normalised."""
        # Here, since it takes as long to import as torch, and settings need only the constants above.
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2.functional import resize

        pixels = torch.from_numpy(np.array(match_channels(image, self.channels))).permute(2, 0, 1)
        size = [self.image_size, self.image_size]
        small = resize(pixels, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return ((small.float() / 255 - mean) / std).contiguous()


def match_channels(image: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """An image (height, width, any) with `channels` channels: grey is repeated, RGB becomes luma.

    Raises:
        UsageError: no such rule is known for the two numbers.
    """
    own = image.shape[2]
    if own == channels:
        return image
    if own == 1:
        return np.repeat(image, channels, axis=2)
    if (own, channels) == (3, 1):
        return (image.astype(np.float32) @ _LUMA).round().astype(np.uint8)[..., None]
    raise UsageError(f"an image of {own} channels does not fit a backbone that takes {channels}")
