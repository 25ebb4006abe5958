"""Safe opening of image files: format by content, size limits from the header, one error class.

Only Pillow decodes: of the common readers, only it refuses truncated files, supports EXIF orientation, and also reads
BMP and TIFF. On damaged files it raises errors of many types; they are converted to `UnreadableImage`.
"""

import logging
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
from PIL import GifImagePlugin, Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from dinomed.errors import DinomedError, first_line, printable
from dinomed.images.bounds.containers import check_container, check_scans, count_gif_frames, too_large
from dinomed.images.bounds.dicom_streams import is_data_set_start, is_dicom_start
from dinomed.images.bounds.tiff_directories import count_tiff_pages
from dinomed.images.bounds.tiff_samples import unsupported_tiff

P = ParamSpec("P")
R = TypeVar("R")

MAX_PIXELS = 100_000_000
"""Largest image that is decoded (300 MB as RGB), checked in the header."""
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")
NO_MEMORY = "does not fit into memory"
"""Reason of an image for which memory could not be allocated."""
MAX_PAGES = 512
GRAY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F")
"""Pillow's modes without colour."""
_ORIENTATION, _BITS_PER_SAMPLE = 274, 258  # tags of EXIF and of TIFF
_TEXT_CHUNKS, _EXIF_TEXTS = (b"tEXt", b"zTXt", b"iTXt"), (b"Raw profile type exif", b"XML:com.adobe.xmp", b"xmp")
logging.getLogger("PIL").addHandler(logging.NullHandler())  # damage is an error of the file, not a line on stderr
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8", b"BM", b"\x93NUMPY")


class UnreadableImage(DinomedError):
    """An image file that cannot be used. ``str(error)`` is "PATH: reason"; `reason` is a short phrase."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = self.args

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.reason}")


@dataclass(frozen=True)
class Header:
    """Facts in the header of an image file.

    Attributes:
        width, height: in pixels, after EXIF orientation.
        mode: as Pillow names it (``RGB``, ``L``, ``I;16``, ``CMYK``, ...).
        format: ``JPEG``, ``PNG``, ...
        frames: number of frames or pages.
        orientation: EXIF orientation (1 to 8) of the stored pixels; 1 if there is none.
        channels: 3 for colour, 1 for gray; the number of pages for a TIFF with several gray pages of one size.
        bits: of a sample as stored.
        video_stream: the pixels of a DICOM file are one video stream; `frames` is what its header states.
    """

    width: int
    height: int
    mode: str
    format: str
    frames: int
    orientation: int = 1
    channels: int = 3
    bits: int = 8
    video_stream: bool = False


def refusing(path: str | Path, max_pixels: int = MAX_PIXELS, *, private: bool = False) -> AbstractContextManager[None]:
    """Turn every error of a block into an `UnreadableImage` with its reason, and suppress warnings.

    Args:
        path: the file that the block reads.
        private: do not use the text of an unforeseen error, which may contain values of a DICOM file.
    """
    return refusing_with(path, lambda error: _reason(error, path, max_pixels, private))


@contextmanager
def refusing_with(path: str | Path, reason: Callable[[Exception], str]) -> Iterator[None]:
    """Turn every error of the block into an `UnreadableImage`, and suppress warnings.

    `reason` returns the text for an unforeseen error. Only the error of a dead PyTorch data worker passes.
    """
    try:
        with quiet_pillow:
            yield
    except UnreadableImage:
        raise
    except DinomedError as error:
        raise UnreadableImage(path, str(error)) from None
    except Exception as error:  # decoders raise errors of many types on damaged bytes
        if is_of_data_worker(error):
            raise
        raise UnreadableImage(path, reason(error)) from None


def is_of_data_worker(error: Exception) -> bool:
    """Return whether a data worker died, which says nothing about the file."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


def reads_file(function: Callable[Concatenate[str | Path, P], R]) -> Callable[Concatenate[str | Path, P], R]:
    """Decorate a function whose first argument is the path of a file: every error becomes an `UnreadableImage`."""

    @wraps(function)
    def read(path: str | Path, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with refusing(path, private=True):
            return function(path, *args, **kwargs)

    return read


@contextmanager
def open_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open the first frame of an image file without decoding it.

    Raises:
        UnreadableImage: the file cannot be opened, or an error occurs inside the block.
    """
    with refusing(path, max_pixels), open(path, "rb", opener=open_regular) as file:
        scans = check_container(file, max_pixels)
        with Image.open(file, formats=FORMATS) as image:
            _check_size(image.width * image.height, max_pixels)
            check_scans(scans, image.width * image.height)
            yield image


def header_of(image: Image.Image) -> Header:
    """Return the header of an opened image."""
    bits = _bits(image)  # before the orientation: reading it may decode a PNG, which removes the bits
    width, height = image.size
    if _orientation(image) in (5, 6, 7, 8):
        width, height = height, width
    frames = _num_frames(image)
    orientation, channels = _stored_orientation(image), 1 if image.mode in GRAY else 3
    if channels == 1 and isinstance(image, TiffImagePlugin.TiffImageFile) and _are_alike(image):
        channels = frames
    return Header(width, height, image.mode, image.format or "", frames, orientation, channels=channels, bits=bits)


def _num_frames(image: Image.Image) -> int:
    """Return the number of frames or pages. Pillow reads all of them to count those of a GIF or TIFF."""
    file = getattr(image, "fp", None)
    if file is not None and isinstance(image, TiffImagePlugin.TiffImageFile):
        return count_tiff_pages(file)
    if file is not None and isinstance(image, GifImagePlugin.GifImageFile):
        return count_gif_frames(file)
    return int(getattr(image, "n_frames", 1))


def _bits(image: Image.Image) -> int:
    """Return the bits of a sample as stored; Pillow itself keeps only the upper 8 of 16-bit colour."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(int(bits) for bits in image.tag_v2.get(_BITS_PER_SAMPLE, (8,)))
    if image.mode == "1":
        return 1
    raw = [tile.args for tile in getattr(image, "tile", [])]
    return 16 if ";16" in str(raw) or image.mode[0] == "I" else 8


def _are_alike(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Return whether all pages (up to `MAX_PAGES`) are gray images of one size and depth, like bands of one image.

    Afterwards the first page is selected again.
    """
    pages = _num_frames(image)
    if not 1 < pages <= MAX_PAGES:
        return False
    first = (image.size, image.mode)
    try:
        for page in range(1, pages):
            image.seek(page)
            if (image.size, image.mode) != first:
                return False
        return True
    finally:
        image.seek(0)


def upright_of(image: Image.Image, pixels: np.ndarray) -> np.ndarray:
    """Apply the EXIF orientation of `image` to its `pixels` ``(H, W, ...)``."""
    return np.ascontiguousarray(upright(pixels, _orientation(image)))


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn ``(H, W, ...)`` upright by an EXIF orientation (1 to 8; other values change nothing)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def looks_like_image(path: str | Path) -> bool:
    """Return whether the first bytes are those of an image format or DICOM; False if they cannot be read."""
    start = first_bytes(path)
    return start.startswith(_MAGIC) or (start[:4] + start[8:12]) == b"RIFFWEBP" or is_dicom_start(start)


def _stored_orientation(image: Image.Image) -> int:
    """Return the orientation in the file, also if Pillow applies it itself; 1 for none or an invalid one."""
    orientation = _orientation(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        orientation = image.tag_v2.get(_ORIENTATION, 1)
    return orientation if orientation in range(1, 9) else 1


def _orientation(image: Image.Image) -> int:
    """Return the orientation that is still to be applied."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1  # Pillow applies it itself and reports the new size
    early = isinstance(image, PngImagePlugin.PngImageFile) and not _exif_may_follow(image)
    try:
        # Pillow decodes a PNG to look for EXIF behind the pixels; the method of the base class does not
        exif = Image.Image.getexif(image) if early else image.getexif()
        return int(exif.get(_ORIENTATION, 1))
    except OSError:
        raise  # a truncated PNG that was decoded to find its EXIF
    except Exception:  # damaged EXIF does not concern the pixels
        return 1


def _exif_may_follow(image: PngImagePlugin.PngImageFile) -> bool:
    """Return whether an opened PNG that is not decoded yet has EXIF or XMP behind its pixels."""
    file = image.fp
    if "exif" in image.info or image.png is None or file is None:
        return False
    place, pixels_passed = file.tell(), False
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            start = file.tell()
            if kind == b"IEND":
                return False
            if pixels_passed and (kind == b"eXIf" or (kind in _TEXT_CHUNKS and file.read(24).startswith(_EXIF_TEXTS))):
                return True
            pixels_passed |= kind == b"IDAT"
            file.seek(start + length + 4)
        return False  # cut off: decoding reports it
    finally:
        file.seek(place)


def open_regular(path: str, flags: int) -> int:
    """Open like `os.open`, but only regular files: a pipe would block forever."""
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        os.close(handle)
        raise DinomedError("is a folder" if folder else "not a regular file")
    return handle


def _check_size(pixels: int, max_pixels: int) -> None:
    if pixels > max_pixels:
        raise DinomedError(too_large(pixels, max_pixels))


def _reason(error: Exception, path: str | Path, max_pixels: int, private: bool) -> str:
    """Return a short reason for an error of Pillow or of the system."""
    if isinstance(error, MemoryError):
        return NO_MEMORY
    text = first_line(error)
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, IsADirectoryError):
        return "is a folder"
    if isinstance(error, UnidentifiedImageError):
        return _kind(path)
    if isinstance(error, Image.DecompressionBombError):
        return too_large(int((re.findall(r"\d+", text) or ["0"])[0]), max_pixels)
    shown = type(error).__name__ if private else text
    return "truncated" if "truncated" in text.lower() and not private else f"damaged ({shown})"


def _kind(path: str | Path) -> str:
    """Return a description of a file that is no supported image."""
    start = first_bytes(path)
    if not start:
        return "empty file"
    if is_dicom_start(start):
        return "DICOM, which is not supported for masks and maps"
    if is_data_set_start(start):
        return "a DICOM data set without file meta information; its transfer syntax is unknown"
    if start.startswith(_MAGIC):
        return unsupported_tiff(path) or "damaged or truncated in its header"
    words = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in words:
        return "SVG, a vector drawing; export it as PNG"
    if words.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not an image"
    if all(byte >= 32 or byte in b"\t\r\n\f\x1b" for byte in start):
        return "text, not an image"
    return f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"


def first_bytes(path: str | Path, count: int = 1024) -> bytes:
    """Return the first bytes of a regular file; empty if it cannot be read."""
    try:
        with open(path, "rb", opener=open_regular) as file:
            return file.read(count)
    except (OSError, DinomedError):
        return b""


class _QuietPillow:
    """Suppression of warnings while any thread uses Pillow; real problems raise `UnreadableImage`.

    `warnings.catch_warnings` alone, entered by two threads, can restore the filters in the wrong order.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)


quiet_pillow = _QuietPillow()
