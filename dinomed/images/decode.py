"""Opening image files safely: by content, limits checked from the header, and every failure named.

Pillow alone decodes: it is the only one of the common readers that refuses truncated files, knows EXIF orientation and
reads BMP and TIFF as well. What it raises on damaged files is nearly anything; here it becomes `UnreadableImage`.
"""

import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from dinomed.errors import DinomedError

MAX_PIXELS = 100_000_000
"""Largest image that is decoded: 300 MB as RGB. Checked from the header."""
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")
_ORIENTATION = 274  # the EXIF tag
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8", b"BM")


class UnreadableImage(DinomedError):
    """An image file that cannot be used. ``str(error)`` is "PATH: reason"; `reason` is a short phrase without it."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}".replace("\n", "\\n")


@dataclass(frozen=True)
class Header:
    """What the header says: `width` and `height` in pixels, upright (after EXIF orientation); `mode` as Pillow names
    it (``RGB``, ``L``, ``I;16``, ``CMYK``, ...); `format` (``JPEG``, ``PNG``, ...); `frames` in the file; the EXIF
    `orientation` (1 to 8) of the pixels as they are stored, 1 if it says none."""

    width: int
    height: int
    mode: str
    format: str
    frames: int
    orientation: int = 1


@contextmanager
def open_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The first frame of an image file, not decoded yet; whatever goes wrong inside the block is `UnreadableImage`."""
    try:
        with (
            _quiet_pillow,
            open(path, "rb", opener=_open_regular) as file,
            Image.open(file, formats=FORMATS) as image,
        ):
            _check_size(image.width * image.height, max_pixels)
            yield image
    except UnreadableImage:
        raise
    except DinomedError as error:
        raise UnreadableImage(path, str(error)) from None
    except Exception as error:  # Pillow's plug-ins raise nearly anything on damaged files
        raise UnreadableImage(path, _reason(error, path, max_pixels)) from None


def header_of(image: Image.Image) -> Header:
    """The header of an opened image."""
    width, height = image.size
    if _orientation(image) in (5, 6, 7, 8):
        width, height = height, width
    frames = getattr(image, "n_frames", 1)
    return Header(width, height, image.mode, image.format or "", frames, _stored_orientation(image))


def upright_of(image: Image.Image, pixels: np.ndarray) -> np.ndarray:
    """`pixels` ``(H, W, ...)`` of `image`, turned as its EXIF orientation asks."""
    return np.ascontiguousarray(upright(pixels, _orientation(image)))


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation (1-8; anything else changes nothing): ``(H, W, ...)`` as it is to be looked at."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def looks_like_image(path: str | Path) -> bool:
    """Whether the first bytes are those of an image format (or of DICOM); false where they cannot be read."""
    start = _first_bytes(path)
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    return start.startswith(_MAGIC) or webp or start[128:132] == b"DICM"


def _stored_orientation(image: Image.Image) -> int:
    """As the file has it, be it for us to undo or for Pillow; 1 for what is none."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        found = image.tag_v2.get(_ORIENTATION, 1)
    else:
        found = _orientation(image)
    return found if found in range(1, 9) else 1


def _orientation(image: Image.Image) -> int:
    """What is still to be undone."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1  # Pillow turns these itself, and reports the turned size
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except OSError:
        raise  # a PNG is decoded to find its EXIF: a truncated one shows here
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1


def _open_regular(path: str, flags: int) -> int:
    """As `os.open`, for regular files only: a pipe would block for ever."""
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        os.close(handle)
        raise DinomedError("is a folder" if folder else "not a regular file")
    return handle


def _check_size(pixels: int, max_pixels: int) -> None:
    if pixels > max_pixels:
        raise DinomedError(f"{pixels / 1e6:.0f} megapixels, over the limit of {max_pixels / 1e6:g}")


def _reason(error: Exception, path: str | Path, max_pixels: int) -> str:
    """A short phrase for what Pillow or the system raised."""
    text = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, IsADirectoryError):
        return "is a folder"
    if isinstance(error, UnidentifiedImageError):
        return _kind(path)
    if isinstance(error, Image.DecompressionBombError):
        pixels = int((re.findall(r"\d+", text) or ["0"])[0])
        return f"{pixels / 1e6:.0f} megapixels, over the limit of {max_pixels / 1e6:g}"
    if "truncated" in text.lower():
        return "truncated"
    if isinstance(error, MemoryError):
        return "does not fit into memory"
    return f"damaged ({text[:100] or type(error).__name__})"


def _kind(path: str | Path) -> str:
    """What a file is that no image format claims."""
    start = _first_bytes(path)
    if not start:
        return "empty file"
    if start[128:132] == b"DICM":
        return "DICOM, which is not read yet"
    if start.startswith(_MAGIC):
        return "damaged or truncated in its header"
    words = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in words:
        return "SVG, a vector drawing; export it as PNG"
    if words.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not an image"
    if all(byte >= 32 or byte in b"\t\r\n\f\x1b" for byte in start):
        return "text, not an image"
    return f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"


def _first_bytes(path: str | Path) -> bytes:
    try:
        with open(path, "rb", opener=_open_regular) as file:
            return file.read(1024)
    except (OSError, DinomedError):
        return b""


class _QuietPillow:
    """Silences warnings while any thread is inside Pillow: what they say is said by `UnreadableImage` or by nobody.

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


_quiet_pillow = _QuietPillow()
