"""Colour images with 16 bits per sample, of which Pillow keeps only 8: PNG by OpenCV, TIFF by tifffile."""

from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

from dinomed.errors import DinomedError
from dinomed.images.bounds.tiff_samples import open_tiff_page, read_tiff_samples


def read_deep_colour(path: str | Path, image: Image.Image) -> np.ndarray:
    """Read a colour image of more than 8 bits: RGB ``(H, W, 3)``, mostly uint16, without its EXIF orientation.

    Transparency is composed over black, as in `dinomed.images.intensity.flatten`.

    Args:
        path: the file.
        image: the same file, opened by Pillow.

    Raises:
        DinomedError: OpenCV or tifffile cannot decode it.
    """
    tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
    values = _from_tiff(path) if tiff else _from_png(path)
    if values.ndim != 3 or values.shape[2] not in (3, 4):
        raise DinomedError(f"{image.format} colour of this kind is read with 8 bits only; set images.bits=8")
    if values.shape[2] == 4:
        top = np.iinfo(values.dtype).max
        values = (values[..., :3] * (values[..., 3:] / top)).round().astype(values.dtype)
    return np.ascontiguousarray(values)


def _from_png(path: str | Path) -> np.ndarray:
    import cv2

    data = np.fromfile(path, np.uint8)
    values = cv2.imdecode(data, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if values is None:
        raise DinomedError("damaged (OpenCV cannot decode it)")
    if values.ndim != 3:
        return values
    return values[..., [2, 1, 0, 3][: values.shape[2]]]


def _from_tiff(path: str | Path) -> np.ndarray:
    with open_tiff_page(path) as page:
        return read_tiff_samples(page)
