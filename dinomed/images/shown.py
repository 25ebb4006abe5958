"""Images for display, including arrays and bands."""

from pathlib import Path

import numpy as np

from dinomed.images.intensity import IntensityConfig
from dinomed.images.read import MAX_PIXELS, UnreadableImage, read_image


def read_shown(
    path: str | Path, channels: int, intensity: IntensityConfig, max_pixels: int = MAX_PIXELS, frame: int = 0
) -> np.ndarray:
    """Read an image for display, uint8 (H, W, 3): in colour, or else the first of its `channels` in gray.

    `frame` is as of `dinomed.images.read.read_image`.

    Raises:
        UnreadableImage: the file cannot be read in colour or with `channels` channels.
    """
    try:
        return read_image(path, max_pixels=max_pixels, frame=frame)
    except UnreadableImage:
        first = read_image(path, channels=channels, intensity=intensity, max_pixels=max_pixels, frame=frame)[..., :1]
    gray = first if first.dtype == np.uint8 else (first * 255).round().astype(np.uint8)
    return np.repeat(gray, 3, axis=2)
