"""Images from any source: a file, a PIL image, a NumPy array or a tensor, as the same array of pixels."""

import sys
from collections.abc import Mapping
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
            _check_open(image)
            if intensity.is_plain and channels in (1, 3):
                return upright_of(image, to_channels(image, channels))
            return upright_of(image, match_channels(to_range(to_samples(image, channels), intensity), channels))
        return match_channels(to_range(_samples(image), intensity), channels)
    except DinomedError as error:
        raise UsageError(f"image in memory: {first_line(error)}") from None


def _check_open(image: Image.Image) -> None:
    """Raise a `UsageError` if a PIL image has no pixels, or its file was closed before they were read."""
    if 0 in image.size:
        raise UsageError(f"a PIL image of {image.width}x{image.height} px has no pixels")
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"a PIL image that cannot be read ({first_line(error)}); open it again") from None


def list_images(images: Any) -> list[ImageSource]:
    """Return several images as a list.

    Raises:
        UsageError: `images` is one image, whose rows, channels or letters would be taken for images, or nothing that
            can be listed.
    """
    is_one = isinstance(images, str | bytes | Path | Image.Image)
    is_array = hasattr(images, "dtype") and hasattr(images, "shape")
    if isinstance(images, Mapping) or hasattr(images, "columns"):  # a DataFrame, a table of pyarrow or a manifest
        raise UsageError(
            f"`images` is of type {type(images).__name__}; give a list of images, such as its column of paths"
        )
    if is_one or (is_array and getattr(images, "ndim", 4) in (2, 3)):
        kind = "text" if isinstance(images, str) else type(images).__name__
        raise UsageError(f"`images` is one {kind}; give a list of images, such as [image]")
    try:
        return list(images)
    except TypeError:
        raise UsageError(
            f"`images` is of type {type(images).__name__}; give a list of paths, PIL images, arrays or tensors"
        ) from None


def _samples(image: Any) -> np.ndarray:
    """Return the samples of an array or a tensor as (H, W, C)."""
    torch = sys.modules.get("torch")  # a tensor exists only where torch is imported
    if torch is not None and isinstance(image, torch.Tensor):
        try:
            image = image.detach().cpu()
            image = image.float() if image.dtype == torch.bfloat16 else image  # NumPy has no such type
            image = (image.permute(1, 2, 0) if image.ndim == 3 else image).numpy()
        except (TypeError, RuntimeError) as error:  # sparse, quantized, or without values
            raise UsageError(
                f"a tensor that cannot be read ({first_line(error)}); give a dense one on a device"
            ) from None
    if not isinstance(image, np.ndarray):
        raise UsageError(f"a {type(image).__name__} is no image; give a path, a PIL image, an array or a tensor")
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise UsageError(f"shape {image.shape} is not one of (H, W), (H, W, C) or, for a tensor, (C, H, W)")
    if image.dtype.kind not in "uif":
        raise UsageError(f"samples of type {image.dtype} are not integers or floating-point numbers")
    return np.ascontiguousarray(image if image.ndim == 3 else image[..., None])
