"""Places of the fragments of encapsulated pixels in a DICOM file, and the number of frames that its pixels can hold."""

import io
import os
from typing import BinaryIO

from dinomed.errors import DinomedError

MAX_FRAGMENTS = 64
"""Largest number of fragments of a video stream, also empty ones. Each capture opens each one as a file of its own."""
_ITEM, _END = b"\xfe\xff\0\xe0", b"\xfe\xff\xdd\xe0"
_UNDEFINED = 0xFFFFFFFF


def find_fragments(file: BinaryIO) -> tuple[list[tuple[int, int]], bool]:
    """Return start and end of each fragment, bytes from the start of the file; the file stands at its pixel data.

    The table of offsets is not one of them. Nothing but the headers of the fragments is read.

    Returns:
        The places, and whether the file ends before its pixel data does.

    Raises:
        DinomedError: the pixel data are not encapsulated, are damaged, or have more than `MAX_FRAGMENTS` fragments.
    """
    size = os.fstat(file.fileno()).st_size
    if file.read(12)[8:] != _UNDEFINED.to_bytes(4, "little"):
        raise DinomedError("its transfer syntax is that of a video, and its pixels are not encapsulated")
    places: list[tuple[int, int]] = []
    items, ends = 0, False  # the first item is the table of offsets
    while not ends:
        header = file.read(8)
        if header[:4] == _END:
            return places, False
        length = int.from_bytes(header[4:], "little")
        if len(header) == 8 and (header[:4] != _ITEM or length == _UNDEFINED):
            raise DinomedError("damaged or truncated DICOM")
        start = file.tell()
        ends = len(header) < 8 or start + length > size
        if items > 0 and len(header) == 8 and length and start < size:
            places.append((start, min(start + length, size)))
        if items > MAX_FRAGMENTS:
            raise DinomedError(f"its video has more than {MAX_FRAGMENTS} fragments; write it as one fragment")
        file.seek(length, io.SEEK_CUR)
        items += 1
    return places, True


def count_possible_frames(file: BinaryIO, frame_bits: int) -> int:
    """Return the largest number of frames that the pixel data of a file can hold; the file stands at its pixel data.

    An encapsulated frame has one fragment or more. Other frames have `frame_bits` bits each, up to the end of the file.
    """
    start = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(start)
    if file.read(12)[8:] != _UNDEFINED.to_bytes(4, "little"):
        return (size - start) * 8 // max(frame_bits, 1)
    items, header = 0, file.read(8)
    while header[:4] == _ITEM:
        items += 1
        file.seek(int.from_bytes(header[4:], "little"), io.SEEK_CUR)
        header = file.read(8)
    return max(items - 1, 0)  # the first item is the table of offsets
