"""Limits on JPEG scans, WebP canvases and GIF frames, checked in the bytes of a file before it is decoded."""

from typing import BinaryIO

from dinomed.errors import DinomedError
from dinomed.images.bounds.tiff_directories import count_tiff_pages

MAX_JPEG_SCANS = 100
"""Largest number of scans of a JPEG; encoders write about 10. Each scan decodes the whole image again."""
MAX_SCANNED_PIXELS = 2_000_000_000
"""Largest product of scans and pixels of a JPEG, about 20 s of decoding."""
MAX_GIF_FRAMES = 65_536
_START_OF_SCAN = b"\xff\xda"


def check_container(file: BinaryIO, max_pixels: int) -> int:
    """Check the structure of an image file in a format that a library would process without limits.

    Returns:
        The number of scans of a JPEG, 0 for another format.

    Raises:
        DinomedError: too many JPEG scans, TIFF pages or tags, or a too large WebP canvas.
    """
    start, scans = file.read(32), 0
    if start.startswith(b"\xff\xd8"):
        scans = count_jpeg_scans(start + file.read())
        check_scans(scans)
    elif start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        count_tiff_pages(file)
    elif start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        width, height = _webp_canvas(start)
        if width * height > max_pixels:
            raise DinomedError(too_large(width * height, max_pixels))
    file.seek(0)
    return scans


def too_large(pixels: int, max_pixels: int) -> str:
    """Return the reason for refusing an image of more than `max_pixels`."""
    return f"{pixels / 1e6:.0f} megapixels, over the limit of {max_pixels / 1e6:g}; cut it into tiles, or shrink it"


def count_jpeg_scans(data: bytes) -> int:
    """Count the scans of a JPEG file; those of embedded previews are counted too."""
    return data.count(_START_OF_SCAN)


def check_scans(scans: int, pixels: int = 0) -> None:
    """Check the work that the scans of a JPEG take.

    Args:
        scans: number of scans.
        pixels: of the image; 0 if they are not known yet.

    Raises:
        DinomedError: more than `MAX_JPEG_SCANS`, or scans times pixels above `MAX_SCANNED_PIXELS`.
    """
    if scans > MAX_JPEG_SCANS:
        raise DinomedError(f"a JPEG of {scans:,} scans, over the limit of {MAX_JPEG_SCANS}; save it again")
    if scans * pixels > MAX_SCANNED_PIXELS:
        raise DinomedError(f"a JPEG of {scans} scans of {pixels / 1e6:.0f} megapixels takes too long; save it again")


def count_gif_frames(file: BinaryIO) -> int:
    """Count the frames of a GIF up to `MAX_GIF_FRAMES` by its blocks; the position in `file` is kept."""
    place = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(place)
    position, frames = 13 + _color_table(data[10:11]), 0
    while position < len(data) and frames < MAX_GIF_FRAMES:
        block = data[position]
        if block == 0x2C:  # an image: its descriptor, a table of colours, the code size, sub-blocks
            frames += 1
            position += 11 + _color_table(data[position + 9 : position + 10])
        elif block == 0x21:  # an extension: its label, sub-blocks
            position += 2
        elif block == 0x3B:  # the trailer
            break
        else:
            position += 1
            continue
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1
    return max(frames, 1)


def _color_table(flags: bytes) -> int:
    """Return the bytes of the table of colours that `flags` declare."""
    return 3 * 2 ** ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _webp_canvas(start: bytes) -> tuple[int, int]:
    """Return the width and height in the first 32 bytes of a WebP file; (0, 0) if they are not there."""
    if start[12:16] == b"VP8X":
        return 1 + int.from_bytes(start[24:27], "little"), 1 + int.from_bytes(start[27:30], "little")
    if start[12:16] == b"VP8L":
        bits = int.from_bytes(start[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if start[12:16] == b"VP8 ":
        return int.from_bytes(start[26:28], "little") & 0x3FFF, int.from_bytes(start[28:30], "little") & 0x3FFF
    return 0, 0
