"""Decompression with an upper bound: zlib and LZMA streams."""

import lzma
import zlib
from typing import Protocol

from dinomed.errors import DinomedError


class Decompressor(Protocol):
    """A decompressor of the standard library."""

    @property
    def eof(self) -> bool:
        """Whether the end of the stream was reached."""

    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes:
        """Return at most `max_length` decompressed bytes."""


def inflate_zlib(data: bytes, limit: int) -> bytes:
    """Decompress a zlib stream.

    Args:
        limit: largest number of decompressed bytes.

    Raises:
        DinomedError: the stream is damaged, truncated, or holds more than `limit` bytes.
    """
    return _inflate(zlib.decompressobj(), data, limit)


def inflate_lzma(data: bytes, limit: int) -> bytes:
    """Decompress an LZMA (xz) stream. The dictionary of the stream may take as much memory as the output, or 64 MiB.

    Raises:
        DinomedError: the stream is damaged, truncated, or holds more than `limit` bytes.
    """
    return _inflate(lzma.LZMADecompressor(memlimit=max(2 * limit, 2**26)), data, limit)


def _inflate(decompressor: Decompressor, data: bytes, limit: int) -> bytes:
    try:
        content = decompressor.decompress(data, limit + 1)
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        raise DinomedError(f"damaged compressed data ({error})") from None
    if len(content) > limit:
        raise DinomedError(f"compressed data hold more than the {limit:,} bytes that the header declares")
    if not decompressor.eof:
        raise DinomedError("truncated")
    return content
