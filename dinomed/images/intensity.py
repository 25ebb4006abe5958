"""Conversion of stored samples to channels in one range: bit depth, windows, percentiles, transparency.

With 8 bits, samples become uint8 in 0 to 255; with 16 bits, float32 in 0 to 1, which keeps all 16-bit steps. The values
that become 0 and 1 are, in this order of priority: the `window`; the `percentiles` of each channel of each image; the
full range, which is that of the smallest usual bit depth (8, 10, 12, 14, 16) that holds the largest sample of the
image. Floating-point samples have a full range only if they lie in 0 to 1.
"""

from typing import Any, Literal

import numpy as np
from PIL import Image, TiffImagePlugin
from pydantic import Field, model_validator

from dinomed.config import Config
from dinomed.errors import DinomedError, UsageError
from dinomed.images.bounds.tiff_samples import MAX_BYTES
from dinomed.images.decode import GRAY, header_of

BACKGROUND = (0, 0, 0)
"""Colour behind transparent pixels: black, as around most medical images."""
SEPARATE_CHANNELS = "dinomed:separate-channels"
"""Key of a text of a PNG file whose three channels are no colours, and are not mixed to gray."""
_DEPTHS = (8, 10, 12, 14, 16)
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601, as in Pillow's "L"
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a TIFF tag


class IntensityConfig(Config):
    """Bit depth and range of samples; the module describes the rule."""

    bits: Literal[8, 16] | None = Field(
        None, description="bits per sample when read; by default 8, in pretraining 16 if the images have more than 8"
    )
    window: tuple[float, float] | None = Field(
        None, description="stored values that become black and white; for lung CT in Hounsfield units: [-1350, 150]"
    )
    percentiles: tuple[float, float] | None = Field(
        None, description="percentiles of each channel of each image that become black and white, such as [0.5, 99.5]"
    )

    @model_validator(mode="after")
    def _one_rule(self) -> "IntensityConfig":
        if self.window and self.percentiles:
            raise ValueError("window and percentiles are both set; set one of them")
        if self.window and not self.window[0] < self.window[1]:
            raise ValueError(f"window {self.window}: expected low < high")
        if self.percentiles and not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f"percentiles {self.percentiles}: expected 0 <= low < high <= 100")
        return self

    @property
    def is_plain(self) -> bool:
        """Whether samples are read with 8 bits over the full range, which leaves 8-bit images unchanged."""
        return self.bits != 16 and self.window is None and self.percentiles is None


def to_range(values: np.ndarray, config: IntensityConfig) -> np.ndarray:
    """Convert samples ``(H, W, channels)`` of any real type to uint8 in 0 to 255, or with 16 bits float32 in 0 to 1.

    >>> to_range(np.array([[[0], [32768], [65535]]], np.uint16), IntensityConfig(bits=16)).round(4).ravel().tolist()
    [0.0, 0.5, 1.0]
    >>> to_range(np.array([[[-1350], [-600], [400]]], np.int16), IntensityConfig(window=(-1350, 150))).ravel().tolist()
    [0, 128, 255]

    Raises:
        DinomedError: the samples have no known full range, or some are not finite.
    """
    if config.is_plain and values.dtype == np.uint8:
        return values
    if config.is_plain and values.dtype.kind in "ui":
        return scale_to_uint8(values)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DinomedError("some values are not finite")
    low, high = _limits(values, config)
    unit = (values.astype(np.float32) - np.float32(low)) / np.maximum(np.float32(high) - np.float32(low), 1e-12)
    unit = np.clip(unit, 0, 1, dtype=np.float32)
    return unit if config.bits == 16 else (unit * 255).round().astype(np.uint8)


def _limits(values: np.ndarray, config: IntensityConfig) -> tuple[Any, Any]:
    """Return the values that become 0 and 1: two numbers, or two arrays with a number per channel."""
    if config.window:
        return config.window
    if config.percentiles:
        low, high = np.percentile(values, config.percentiles, axis=(0, 1))
        return low, high
    return full_range(values)


def full_range(values: np.ndarray) -> tuple[float, float]:
    """Return the full range of samples: that of the smallest usual bit depth, or 0 to 1 for floating point.

    Raises:
        DinomedError: samples below 0 or above 65535, or floating-point samples outside 0 to 1.
    """
    if values.dtype.kind == "f":
        least, largest = float(values.min()), float(values.max())
        if least < 0 or largest > 1:
            raise DinomedError(
                f"floating-point values from {least:g} to {largest:g} have no fixed range; set images.window, or store "
                "them in 0 to 1"
            )
        return 0, 1
    return 0, 1 if values.dtype.kind == "b" else _top(values)


def _top(values: np.ndarray) -> int:
    """Return the end of the full range of integer samples.

    Raises:
        DinomedError: samples below 0 or above 65535.
    """
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise DinomedError(
            f"values from {low} to {high} fit no 16-bit range; set images.window, or store them with 8 or 16 bits"
        )
    return next(2**bits - 1 for bits in _DEPTHS if high < 2**bits)


def match_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Convert an image (H, W, any), uint8 or float32, to `channels` channels: gray is repeated, RGB becomes luma.

    Raises:
        UsageError: any other pair of channel numbers.
    """
    present = image.shape[2]
    if present == channels:
        return image
    if present == 1:
        return np.repeat(image, channels, axis=2)
    if (present, channels) == (3, 1):
        luma = image.astype(np.float32) @ _LUMA
        return (luma.round().astype(np.uint8) if image.dtype == np.uint8 else luma.clip(0, 1))[..., None]
    raise UsageError(f"an image of {present} channels does not fit a backbone that takes {channels}")


def scale_to_uint8(values: np.ndarray) -> np.ndarray:
    """Scale integer samples above 8 bits to uint8 without clipping.

    The range is that of the smallest usual bit depth (8, 10, 12, 14, 16) that holds the largest sample, since most
    "16-bit" files of cameras and scanners hold 10 to 14 bits. Black and ratios of samples are preserved.

    >>> scale_to_uint8(np.array([0, 32768, 65535], np.uint16))
    array([  0, 128, 255], dtype=uint8)

    Raises:
        DinomedError: samples below 0 or above 65535, which have no fixed range, or floating-point samples.
    """
    if values.dtype.kind == "f":
        raise DinomedError("floating-point pixels have no fixed range; convert to 8 or 16 bit first")
    top = _top(values)
    return ((values.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)


def to_channels(image: Image.Image, channels: int) -> np.ndarray:
    """Decode `image` to uint8 ``(H, W, channels)``, 3 for RGB or 1 for luma (Rec. 601), without EXIF orientation.

    Raises:
        DinomedError: a picture is hidden, because all of it is transparent.
        UsageError: the channels are no colours (`SEPARATE_CHANNELS`), and one is wanted.
    """
    if is_wide(image):
        return np.repeat(scale_to_uint8(samples(image))[..., None], channels, axis=2)
    if channels == 1 and SEPARATE_CHANNELS in image.info:
        raise UsageError(
            "its three channels are windows or neighbouring slices, which a backbone that takes 1 channel would mix; "
            "write slices of one window, or use a backbone that takes 3"
        )
    refuse_hidden(image)
    pixels = np.asarray(flatten(image).convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)


def to_samples(image: Image.Image, channels: int) -> np.ndarray:
    """Return the stored samples of `image`, ``(H, W, n)``, without its EXIF orientation.

    n is `channels` if the file has as many bands or gray pages, otherwise 1 or 3. Of 16-bit colour only the upper 8
    bits are returned, since Pillow drops the others.

    Raises:
        UsageError: the file has several pages, but not `channels`.
    """
    if channels not in (1, 3):
        pages = header_of(image).channels if image.mode in GRAY else 1
        if pages not in (1, channels):
            raise UsageError(f"an image of {pages} channels (pages) does not fit a backbone that takes {channels}")
        if pages == channels:
            if pages * image.width * image.height * (4 if is_wide(image) else 1) > MAX_BYTES:
                raise DinomedError(f"{pages} pages of {image.width}x{image.height} px, over the limit of 2.1 GB")
            bands = []
            for page in range(channels):
                image.seek(page)
                bands.append(samples(image) if is_wide(image) else np.asarray(image.convert("L")))
            return np.stack(bands, axis=-1)
        if len(image.getbands()) == channels:
            return np.asarray(image)
    if is_wide(image):
        return samples(image)[..., None]
    return to_channels(image, 1 if channels == 1 or image.mode in GRAY else 3)


def is_wide(image: Image.Image) -> bool:
    """Return whether the samples have more than 8 bits; Pillow reduces 16-bit colour to 8 bits."""
    return image.mode[0] in "IF"


def samples(image: Image.Image) -> np.ndarray:
    """Return the samples ``(H, W)`` of a gray image of more than 8 bits."""
    values = np.asarray(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        return np.uint16(65535) - values if image.mode[0] == "I" else values  # Pillow inverts 8-bit files only
    return values


def refuse_hidden(image: Image.Image) -> None:
    """Raise if the alpha channel is 0 everywhere and the colours are not alike, as some renderers write images."""
    if not image.has_transparency_data:
        return
    layer = image.convert("RGBA")
    if layer.getchannel("A").getextrema() == (0, 0) and layer.convert("RGB").getcolors(1) is None:
        raise DinomedError("transparent everywhere, so it would be black; save it without its transparency")


def flatten(image: Image.Image) -> Image.Image:
    """Return `image` without transparency, composed over `BACKGROUND`."""
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), layer).convert("RGB")
