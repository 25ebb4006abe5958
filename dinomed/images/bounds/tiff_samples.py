"""Decoding of the samples of a TIFF page by tifffile, with a bound on the bytes of each strip and tile.

tifffile decompresses a strip or tile whatever its size, and then compares it with its declared size. Here deflate and
LZMA are decompressed up to the declared size. The other methods need the package imagecodecs, which has its own bound.
"""

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.errors import DinomedError
from dinomed.images.bounds.inflate import inflate_lzma, inflate_zlib
from dinomed.images.bounds.tiff_directories import count_tiff_pages

MAX_BYTES = 2**31
"""Largest number of bytes of the samples of an image."""
_UNCOMPRESSED = 1
_INFLATE: dict[int, Callable[[bytes, int], bytes]] = {8: inflate_zlib, 32946: inflate_zlib, 34925: inflate_lzma}


@contextmanager
def open_tiff_page(path: str | Path) -> Iterator[Any]:
    """Open the first page of a TIFF file, after a check of its directories.

    Raises:
        DinomedError: as `count_tiff_pages`.
    """
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # damage is an error of the file, not a log line
    with open(path, "rb") as file:
        count_tiff_pages(file)
        with warnings.catch_warnings(action="ignore"), tifffile.TiffFile(file) as tiff:
            yield tiff.pages.first


def unsupported_tiff(path: str | Path) -> str | None:
    """Return the reason why Pillow does not read an undamaged TIFF file; None for a damaged file or another format.

    Such a file has a form of colour, a number of channels or a type of values that do not belong together, or that
    Pillow does not support.
    """
    try:
        with open_tiff_page(path) as page:
            ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
            if not ends or max(ends) > os.path.getsize(path):
                return None
            channels, bits, colour = page.samplesperpixel, page.bitspersample, page.photometric
            if not (isinstance(channels, int) and isinstance(bits, int) and isinstance(colour, int)):
                return None  # a damaged tag holds many values, which the message would all list
            words = f"{channels} channel{'s' if channels > 1 else ''} of {bits} bits"
            colour = getattr(colour, "name", colour)
            return f"a TIFF of {colour} with {words}, which is not supported; convert it to gray or RGB of 8 or 16 bits"
    except Exception:  # tifffile raises errors of many types on damaged files
        return None


def read_tiff_samples(page: Any) -> np.ndarray:
    """Return the samples of a page ``(H, W, samples)`` in the byte order of the machine.

    Raises:
        DinomedError: the compression is not supported, a strip or tile is damaged or holds more than it declares, or
            the samples take more than `MAX_BYTES`.
    """
    shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
    if page.dtype is None or page.imagedepth != 1:
        raise DinomedError("samples of this kind are not supported; save them as integers or floating-point numbers")
    if math.prod(shape) * page.dtype.itemsize > MAX_BYTES:
        raise DinomedError(f"{math.prod(shape) * page.dtype.itemsize / 1e9:.1f} GB of samples, over the limit of 2.1")
    inflate = _INFLATE.get(page.compression)
    if inflate is None and page.compression != _UNCOMPRESSED:
        return _by_imagecodecs(page).reshape(shape)
    page.compression = _UNCOMPRESSED  # `page.decode` then only applies the predictor and the shape
    page.__dict__.pop("decode", None)
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, shape[1])
    samples_in_segment = 1 if page.planarconfig == 2 else shape[2]
    limit = min(rows, 2 * MAX_BYTES) * columns * samples_in_segment * page.dtype.itemsize
    if limit > MAX_BYTES and page.is_tiled:
        raise DinomedError(f"tiles of {columns} x {rows} px, over the limit of 2.1 GB")
    limit = min(limit, math.prod(shape) * page.dtype.itemsize) if not page.is_tiled else limit
    samples = np.zeros(shape, page.dtype)
    for segment, index in page.parent.filehandle.read_segments(
        page.dataoffsets, page.databytecounts, sort=False, buffersize=2**24
    ):
        if segment is None:  # a sparse file
            continue
        if len(segment) > 2 * limit + 4096:
            raise DinomedError(f"damaged (a strip or tile of {len(segment):,} bytes that declares {limit:,})")
        content = segment if inflate is None else inflate(segment, limit + page.dtype.itemsize)
        _place(samples, page, *page.decode(content, index))
    return samples


def _place(
    samples: np.ndarray, page: Any, decoded: np.ndarray, position: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    """Write a decoded strip or tile (depth, length, width, samples) to its place."""
    plane, _, row, column, _ = position
    block = decoded[0, : shape[1], : shape[2]][: samples.shape[0] - row, : samples.shape[1] - column]
    area = samples[row : row + block.shape[0], column : column + block.shape[1]]
    if page.planarconfig == 2:  # samples are stored one plane after the other
        area[..., plane] = block[..., 0]
    else:
        area[...] = block


def _by_imagecodecs(page: Any) -> np.ndarray:
    try:
        values = page.asarray(maxworkers=1)
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        name = getattr(page.compression, "name", page.compression)
        raise DinomedError(f"TIFF samples compressed by {name}; save them uncompressed or by deflate") from None
    return np.moveaxis(values, 0, -1) if page.planarconfig == 2 else values
