"""Images with any number of channels: NumPy arrays, and TIFF files with bands that Pillow does not read.

A NumPy file holds one image ``(height, width, channels)`` of integers or floating-point numbers; nothing is unpickled.
A TIFF file is read here if its first page has 2 or more than 4 samples per pixel, or 4 that are no colours.
"""

import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dinomed.errors import DinomedError
from dinomed.images.bounds.containers import too_large
from dinomed.images.bounds.tiff_samples import MAX_BYTES, open_tiff_page, read_tiff_samples
from dinomed.images.decode import FORMATS, MAX_PIXELS, Header, first_bytes, open_regular, refusing, upright

MAX_CHANNELS = 512
"""Largest number of channels; hyperspectral cameras have some hundreds."""
NPY_MAGIC = b"\x93NUMPY"
_ORIENTATION = 274  # a tag of TIFF
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_array(path: str | Path) -> bool:
    """Return whether `read_array` reads a file, by its content; False if it cannot be opened."""
    start = first_bytes(path, 6)
    return start == NPY_MAGIC or (start.startswith(_TIFF_MAGIC) and _has_bands(path))


def read_array_header(path: str | Path, max_pixels: int = MAX_PIXELS) -> Header:
    """Return the header of an array or of TIFF bands without reading the samples.

    Raises:
        UnreadableImage: as `read_array`, except for damage in the samples.
    """
    with refusing(path):
        if first_bytes(path, 6) == NPY_MAGIC:
            with open(path, "rb", opener=open_regular) as file:
                return _header("NPY", *_npy_layout(file, max_pixels))
        with open_tiff_page(path) as page:
            return _header(FORMATS[2], *_bands_layout(page, max_pixels), _orientation(page))


def read_array(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[Header, np.ndarray]:
    """Return the header and the samples ``(H, W, channels)``, upright; its mode is such as ``uint16 x 5``.

    Raises:
        UnreadableImage: missing, damaged, pickled, of another shape or type, or too large (checked in the header).
    """
    with refusing(path):
        if first_bytes(path, 6) == NPY_MAGIC:
            values = _read_npy(path, max_pixels)
            return _header("NPY", values.shape, values.dtype), values
        values, orientation = _read_bands(path, max_pixels)
        header = _header(FORMATS[2], values.shape, values.dtype, orientation)
        return header, np.ascontiguousarray(upright(values, orientation))


def _header(kind: str, shape: tuple[int, ...], dtype: np.dtype, orientation: int = 1) -> Header:
    """Return the header of stored samples of a shape (H, W, channels)."""
    height, width, channels = shape
    if orientation in (5, 6, 7, 8):
        height, width = width, height
    mode = f"{dtype.name} x {channels}"
    return Header(width, height, mode, kind, 1, orientation, channels=channels, bits=8 * dtype.itemsize)


def _orientation(page: Any) -> int:
    """Return the orientation of a TIFF page; 1 if it has none or an invalid one."""
    tag = page.tags.get(_ORIENTATION)
    return int(tag.value) if tag is not None and tag.value in range(1, 9) else 1


def _npy_layout(file: BinaryIO, max_pixels: int) -> tuple[tuple[int, ...], np.dtype]:
    """Read the shape and the type of a NumPy file, and check them."""
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise DinomedError(f"NumPy file version {version[0]}.{version[1]} is not supported")
    shape, _, dtype = read_header[version](file)
    _check(shape, dtype, max_pixels)
    return shape, dtype


def _read_npy(path: str | Path, max_pixels: int) -> np.ndarray:
    with open(path, "rb", opener=open_regular) as file:
        _npy_layout(file, max_pixels)
        file.seek(0)
        try:
            values = np.load(file, allow_pickle=False)
        except (ValueError, EOFError):
            raise DinomedError("truncated") from None
    return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False))


def _has_bands(path: str | Path) -> bool:
    """Return whether a TIFF file has bands that Pillow does not read."""
    try:
        with open_tiff_page(path) as page:
            samples = page.samplesperpixel
            return bool(samples == 2 or samples > 4 or (samples == 4 and page.photometric not in (2, 5, 6)))
    except Exception:  # Pillow reports the damage
        return False


def _bands_layout(page: Any, max_pixels: int) -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape and the type of the samples of a TIFF page, checked."""
    shape, dtype = (page.imagelength, page.imagewidth, page.samplesperpixel), np.dtype(page.dtype or "V1")
    _check(shape, dtype, max_pixels)
    return shape, dtype


def _read_bands(path: str | Path, max_pixels: int) -> tuple[np.ndarray, int]:
    """Return the samples as stored, and their orientation."""
    with open_tiff_page(path) as page:
        _bands_layout(page, max_pixels)
        return read_tiff_samples(page), _orientation(page)


def _check(shape: tuple[int, ...], dtype: np.dtype, max_pixels: int) -> None:
    if dtype.kind not in "uifb" or dtype.hasobject:
        raise DinomedError(f"values have type {dtype.name}; expected integers or floating-point numbers")
    if len(shape) != 3 or min(shape) < 1:
        raise DinomedError(f"array has shape {shape}; expected (height, width, channels)")
    height, width, channels = shape
    if channels > MAX_CHANNELS:
        raise DinomedError(f"{channels} channels, over the limit of {MAX_CHANNELS}; the last axis must be the channels")
    if height * width > max_pixels:
        raise DinomedError(too_large(height * width, max_pixels))
    if math.prod(shape) * dtype.itemsize > MAX_BYTES:
        raise DinomedError(f"{math.prod(shape) * dtype.itemsize / 1e9:.1f} GB of samples, over the limit of 2.1")
