"""Reading of images from outside in a decoding process."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.images.dicom.spacing import PixelSpacing, read_pixel_spacing
from dinomed.images.intensity import IntensityConfig
from dinomed.images.read import MAX_PIXELS, PLAIN, UnreadableImage, read_image
from dinomed.images.shown import read_shown
from dinomed.isolation.pool import shared_pool


def read_image_isolated(
    path: str | Path,
    *,
    channels: int = 3,
    intensity: IntensityConfig = PLAIN,
    max_pixels: int = MAX_PIXELS,
    at_least: int | None = None,
) -> np.ndarray:
    """Read like `dinomed.images.read.read_image`, in a decoding process with limits on memory and time.

    Raises:
        UnreadableImage: as `read_image`, or the file exceeds a limit.
    """
    return _run("read_pixels", path, channels, intensity.model_dump(mode="json"), max_pixels, at_least)[1]


def read_shown_isolated(path: str | Path, channels: int, intensity: IntensityConfig, max_pixels: int) -> np.ndarray:
    """Read like `dinomed.images.shown.read_shown`, in a decoding process with limits on memory and time.

    Raises:
        UnreadableImage: as `read_shown`, or the file exceeds a limit.
    """
    return _run("shown_pixels", path, channels, intensity.model_dump(mode="json"), max_pixels)[1]


def read_pixel_spacing_isolated(path: str | Path) -> PixelSpacing | None:
    """Read like `dinomed.images.dicom.spacing.read_pixel_spacing`, in a decoding process with limits.

    Raises:
        UnreadableImage: as `read_pixel_spacing`, or the file exceeds a limit.
    """
    plane, spacing = _run("pixel_spacing", path)
    return PixelSpacing(float(spacing[0]), float(spacing[1]), plane) if plane else None


def _run(name: str, path: str | Path, *arguments: Any) -> tuple[Any, np.ndarray]:
    """Call a function of this module in a decoding process, whose current folder may be another one."""
    answer = shared_pool().run(f"{__name__}:{name}", [[os.path.abspath(path), *arguments]])[0]
    if isinstance(answer, UnreadableImage):
        raise type(answer)(path, answer.reason)
    content, array = answer
    assert array is not None
    return content, array


def read_pixels(
    path: str, channels: int, intensity: dict[str, Any], max_pixels: int, at_least: int | None
) -> tuple[None, np.ndarray]:
    """Read an image; for the decoding process."""
    config = IntensityConfig(**intensity)
    return None, read_image(path, channels=channels, intensity=config, max_pixels=max_pixels, at_least=at_least)


def shown_pixels(path: str, channels: int, intensity: dict[str, Any], max_pixels: int) -> tuple[None, np.ndarray]:
    """Read an image for display; for the decoding process."""
    return None, read_shown(path, channels, IntensityConfig(**intensity), max_pixels)


def pixel_spacing(path: str) -> tuple[str | None, np.ndarray]:
    """Read where the pixel spacing holds, and the spacing, float64 (2,); None and (0,) where there is none."""
    spacing = read_pixel_spacing(path)
    if spacing is None:
        return None, np.zeros(0)
    return spacing.plane, np.array([spacing.rows_mm, spacing.columns_mm])
