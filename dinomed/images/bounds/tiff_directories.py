"""Check of the page directories of a TIFF file before a library reads them."""

import os
import struct
from typing import BinaryIO

from dinomed.errors import DinomedError

MAX_TIFF_PAGES = 65_536
"""Largest number of pages of a TIFF file; counting them takes about 0.3 s."""
MAX_TAGS = 1_024
"""Largest number of tags of a page; baseline and extension tags together are about 100."""
_TAG_BYTES = (1, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 1, 1, 8, 8, 8)
"""Bytes of a value by the type number of a tag; 1 for unknown types."""


def count_tiff_pages(file: BinaryIO) -> int:
    """Count the pages of a TIFF or BigTIFF file by its chain of directories; the position in `file` is kept.

    A damaged end of the chain ends the count, because the pages before it can be read.

    Raises:
        DinomedError: the file has more than `MAX_TIFF_PAGES` pages, a page has more than `MAX_TAGS` tags, or the tags
            of a page declare more bytes than the file has.
    """
    place = file.tell()
    try:
        return _count(file, os.fstat(file.fileno()).st_size)
    finally:
        file.seek(place)


def _count(file: BinaryIO, file_bytes: int) -> int:
    file.seek(0)
    start = file.read(16)
    order = "<" if start[:2] == b"II" else ">"
    big = start[2:4] in (b"+\0", b"\0+")
    entry = struct.Struct(order + ("HHQ8x" if big else "HHL4x"))
    number, offset = (struct.Struct(order + code) for code in (("Q", "Q") if big else ("H", "L")))
    directory = _unpack(offset, start[8:16] if big else start[4:8])
    seen: set[int] = set()
    while directory and directory not in seen and directory < file_bytes:
        if len(seen) == MAX_TIFF_PAGES:
            raise DinomedError(f"more than {MAX_TIFF_PAGES:,} pages; split the file")
        seen.add(directory)
        file.seek(directory)
        tags = _unpack(number, file.read(number.size))
        if tags > MAX_TAGS:
            raise DinomedError(f"damaged (a page with {tags:,} tags)")
        content = file.read(tags * entry.size + offset.size)
        end = min(tags, len(content) // entry.size) * entry.size
        declared = sum(
            count * (_TAG_BYTES[kind] if kind < len(_TAG_BYTES) else 1)
            for _, kind, count in entry.iter_unpack(content[:end])
        )
        if declared > file_bytes:
            raise DinomedError(f"damaged (the tags of a page declare {declared:,} bytes in a file of {file_bytes:,})")
        directory = _unpack(offset, content[end:])
    return max(len(seen), 1)


def _unpack(layout: struct.Struct, data: bytes) -> int:
    """Return the number at the start of `data`; 0 if it is cut off."""
    return int(layout.unpack_from(data)[0]) if len(data) >= layout.size else 0
