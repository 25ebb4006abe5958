"""From what a file holds to 8-bit channels: 16 bits scaled, transparency flattened."""

import numpy as np
from PIL import Image, TiffImagePlugin

from dinomed.errors import DinomedError

BACKGROUND = (0, 0, 0)
"""Transparent pixels are shown over black, the colour of the surround in most medical pictures."""
_DEPTHS = (8, 10, 12, 14, 16)
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a TIFF tag


def scale_to_uint8(values: np.ndarray) -> np.ndarray:
    """Integer samples above 8 bits to uint8, scaled and never clipped.

    The range is that of the smallest usual bit depth (8, 10, 12, 14, 16) that holds the largest sample, since most
    "16-bit" files of cameras and scanners hold 10 to 14 bits: black stays black, and ratios stay.

    >>> scale_to_uint8(np.array([0, 32768, 65535], np.uint16))
    array([  0, 128, 255], dtype=uint8)

    Raises:
        DinomedError: samples below 0 or above 65535, which have no agreed range, or floating-point samples.
    """
    if values.dtype.kind == "f":
        raise DinomedError("floating-point pixels have no fixed range; convert to 8 or 16 bit first")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise DinomedError(f"pixels from {low} to {high} fit no 16-bit range; convert to 8 or 16 bit first")
    top = next(2**bits - 1 for bits in _DEPTHS if high < 2**bits)
    return ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)


def to_channels(image: Image.Image, channels: int) -> np.ndarray:
    """Decode `image` to uint8 ``(H, W, channels)``: 3 are RGB, 1 is luma (Rec. 601). Not turned upright."""
    if is_wide(image):
        return np.repeat(scale_to_uint8(samples(image))[..., None], channels, axis=2)
    pixels = np.asarray(flatten(image).convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)


def is_wide(image: Image.Image) -> bool:
    """Whether samples have more than 8 bits. (Pillow keeps the upper 8 of 16-bit colour by itself.)"""
    return image.mode[0] in "IF"


def samples(image: Image.Image) -> np.ndarray:
    """The samples of a gray image of more than 8 bits, ``(H, W)``."""
    values = np.asarray(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        return np.uint16(65535) - values if image.mode[0] == "I" else values  # Pillow inverts 8-bit files only
    return values


def flatten(image: Image.Image) -> Image.Image:
    """`image` without transparency: laid over `BACKGROUND`."""
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), layer).convert("RGB")
