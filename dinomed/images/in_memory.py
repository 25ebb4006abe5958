"""Images from any source: a file, a PIL image, a NumPy array or a tensor, as the same array of pixels."""

import sys
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from dinomed.errors import DinomedError, UsageError, first_line
from dinomed.images.decode import upright_of
from dinomed.images.intensity import IntensityConfig, match_channels, to_channels, to_range, to_samples
from dinomed.images.read import PLAIN, read_image

ImageSource: TypeAlias = Any
"""A path (str or Path), a `PIL.Image.Image`, an array (H, W) or (H, W, C), or a torch tensor (C, H, W) or (H, W)."""


def as_pixels(image: ImageSource, *, channels: int = 3, intensity: IntensityConfig = PLAIN) -> np.ndarray:
    """Return the pixels of an image file or of an image in memory.

    The result equals that of `dinomed.images.read.read_image` for the same samples: EXIF orientation is applied, more
    than 8 bits are scaled, and gray is repeated to the number of channels.

    Args:
        image: a path; a PIL image of any mode; an array (H, W) or (H, W, C); or a torch tensor (C, H, W) or (H, W).
            Arrays and tensors hold integers, or floating-point numbers in 0 to 1.
        channels: number of channels of the result.
        intensity: bit depth and window, as for `read_image`.

    Returns:
        Pixels (H, W, channels): uint8 in 0 to 255, or float32 in 0 to 1 with ``IntensityConfig(bits=16)``.

    Raises:
        UnreadableImage: the file is missing or damaged.
        UsageError: the object is no image, or its shape, values or number of channels do not fit.

    Examples:
        >>> as_pixels(np.zeros((4, 6), np.uint8)).shape
        (4, 6, 3)
    """
    if isinstance(image, str | Path):
        return read_image(image, channels=channels, intensity=intensity)
    try:
        if isinstance(image, Image.Image):
            if intensity.is_plain and channels in (1, 3):
                return upright_of(image, to_channels(image, channels))
            return upright_of(image, match_channels(to_range(to_samples(image, channels), intensity), channels))
        return match_channels(to_range(_samples(image), intensity), channels)
    except DinomedError as error:
        raise UsageError(f"image in memory: {first_line(error)}") from None


def _samples(image: Any) -> np.ndarray:
    """Return the samples of an array or a tensor as (H, W, C)."""
    torch = sys.modules.get("torch")  # a tensor exists only where torch is imported
    if torch is not None and isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.permute(1, 2, 0) if image.ndim == 3 else image).numpy()
    if not isinstance(image, np.ndarray):
        raise UsageError(f"a {type(image).__name__} is no image; give a path, a PIL image, an array or a tensor")
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise UsageError(f"shape {image.shape} is not one of (H, W), (H, W, C) or, for a tensor, (C, H, W)")
    if image.dtype.kind not in "uif":
        raise UsageError(f"samples of type {image.dtype} are not integers or floating-point numbers")
    return np.ascontiguousarray(image if image.ndim == 3 else image[..., None])
