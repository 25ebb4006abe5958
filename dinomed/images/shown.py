"""A picture as a person is to see it, also of files that are none: arrays and bands."""

from pathlib import Path

import numpy as np

from dinomed.images.intensity import IntensityConfig
from dinomed.images.read import MAX_PIXELS, UnreadableImage, read_image


def read_shown(path: str | Path, channels: int, intensity: IntensityConfig, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """uint8 (H, W, 3): the colour picture of a file; of one that has none, the first of its `channels` in gray.

    Raises:
        UnreadableImage: it cannot be read with so many channels either.
    """
    try:
        return read_image(path, max_pixels=max_pixels)
    except UnreadableImage:
        given = read_image(path, channels=channels, intensity=intensity, max_pixels=max_pixels)[..., :1]
    gray = given if given.dtype == np.uint8 else (given * 255).round().astype(np.uint8)
    return np.repeat(gray, 3, axis=2)
