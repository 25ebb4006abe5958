"""First bytes of a DICOM file, and limits on its compressed parts: a deflated data set, JPEG and JPEG 2000 frames."""

import io
import math
import zlib
from typing import Any, BinaryIO

from dinomed.errors import DinomedError
from dinomed.images.bounds.containers import check_scans, count_jpeg_scans
from dinomed.images.bounds.tiff_samples import MAX_BYTES

MAX_ELEMENT_BYTES = 2**26
"""Largest number of bytes of a deflated data set besides its pixels."""
MAX_LAYERS = 64
"""Largest number of quality layers of a JPEG 2000 frame; encoders write at most about 20."""
_MIN_TILE_PX = 4096
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_META_START, _GROUP_LENGTH = 132, b"\x02\0\0\0UL\x04\0"
_ITEM = b"\xfe\xff\0\xe0"
_CODESTREAM, _CODING_STYLE = b"\xff\x4f\xff\x51", b"\xff\x52"
_DATA_SETS = (b"\x08\0\0\0\x04\0\0\0", b"\x08\0\0\0UL\x04\0", b"\x08\0\x05\0", b"\x08\0\x08\0")
"""Data sets start with the length of group 8, the character set, or the image type."""
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # the last one of JPEG-LS


def is_dicom_start(start: bytes) -> bool:
    """Return whether a file starts as DICOM does: with a preamble, or at once with an element of its meta information.

    Args:
        start: its first 132 bytes or more.
    """
    without_preamble = start[:2] == b"\x02\0" and start[4:6] in (b"UL", b"OB", b"UI")
    return start[128:132] == b"DICM" or without_preamble


def is_data_set_start(start: bytes) -> bool:
    """Return whether a file starts as a DICOM data set without file meta information."""
    return start.startswith(_DATA_SETS)


def bounded_dicom(file: BinaryIO) -> BinaryIO:
    """Return an open DICOM file, or an inflated copy in memory if its data set is deflated.

    pydicom inflates without a bound. Here the bound is the size of the pixels that the inflated header declares.

    Raises:
        DinomedError: the data set is damaged, or holds more than it declares.
    """
    start = file.read(_META_START + 12)
    meta_bytes = int.from_bytes(start[-4:], "little") if start[_META_START:-4] == _GROUP_LENGTH else 2**16
    if meta_bytes > 2**20:
        raise DinomedError("damaged or truncated DICOM")
    meta = file.read(meta_bytes)
    if _DEFLATED not in meta:
        file.seek(0)
        return file
    if start[_META_START:-4] != _GROUP_LENGTH:
        raise DinomedError("a deflated DICOM without the length of its meta information")
    return _inflate(start[:_META_START], meta, file.read())


def _inflate(preamble: bytes, meta: bytes, data: bytes) -> BinaryIO:
    """Return the file with an inflated data set, as explicit little endian."""
    from pydicom import dcmread

    explicit = meta.replace(_DEFLATED, b"1.2.840.10008.1.2.1\0\0\0")  # null bytes fill the value
    start = preamble + _GROUP_LENGTH + len(meta).to_bytes(4, "little") + explicit
    try:
        decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
        content = decompressor.decompress(data, MAX_ELEMENT_BYTES)
        if tail := decompressor.unconsumed_tail:
            elements = dcmread(io.BytesIO(start + content), stop_before_pixels=True, specific_tags=_SIZES)
            allowed = pixel_bytes(elements, int(elements.get("NumberOfFrames") or 1))
            content += decompressor.decompress(tail, max(1, min(allowed, MAX_BYTES)))
    except zlib.error:
        raise DinomedError("damaged or truncated DICOM") from None
    if decompressor.unconsumed_tail:
        raise DinomedError("a deflated DICOM that holds more than its header declares")
    return io.BytesIO(start + content)


_SIZES: Any = ["Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames"]


def pixel_bytes(elements: Any, frames: int = 1) -> int:
    """Return the number of bytes of decoded frames."""
    rows, columns = int(elements.get("Rows") or 0), int(elements.get("Columns") or 0)
    samples, bits = int(elements.get("SamplesPerPixel") or 1), int(elements.get("BitsAllocated") or 8)
    return math.ceil(rows * columns * samples * bits * frames / 8)


def check_frame(file: BinaryIO, rows: int, columns: int, frames: int) -> None:
    """Check the first JPEG, JPEG-LS or JPEG 2000 frame of a DICOM file; the file stands at its pixel data.

    Raises:
        DinomedError: the frame has another size than the header, or takes too long to decode.
    """
    start = file.read(12)
    if start[8:12] != b"\xff\xff\xff\xff":  # not encapsulated
        return
    frame = _first_fragment(file, whole=frames == 1)
    if frame.startswith(b"\xff\xd8"):
        check_scans(count_jpeg_scans(frame), rows * columns)
        _check_size("JPEG", _jpeg_size(frame), (rows, columns))
    elif (place := frame.find(_CODESTREAM, 0, 1024)) >= 0:
        _check_jpeg_2000(frame[place + 4 :], (rows, columns))


def _first_fragment(file: BinaryIO, whole: bool) -> bytes:
    """Return the first fragment after the table of offsets; the rest of the file if `whole`."""
    for is_table in (True, False):
        header = file.read(8)
        length = int.from_bytes(header[4:8], "little")
        if header[:4] != _ITEM:
            return b""
        if is_table:
            file.seek(length, io.SEEK_CUR)
    return file.read() if whole else file.read(length)


def _check_size(kind: str, size: tuple[int, int] | None, declared: tuple[int, int]) -> None:
    if size is not None and size != declared:
        raise DinomedError(
            f"the header declares {declared[1]}x{declared[0]} px, its {kind} frame has {size[1]}x{size[0]}"
        )


def _jpeg_size(frame: bytes) -> tuple[int, int] | None:
    """Return the rows and columns of a JPEG; None if its frame header is not found."""
    position = 2
    while position + 9 <= len(frame) and frame[position] == 0xFF:
        marker, length = frame[position + 1], int.from_bytes(frame[position + 2 : position + 4], "big")
        if marker in _FRAME_MARKERS:
            rows, columns = frame[position + 5 : position + 7], frame[position + 7 : position + 9]
            return int.from_bytes(rows, "big"), int.from_bytes(columns, "big")
        position += 1 if marker == 0xFF else 2 + length
    return None


def _check_jpeg_2000(stream: bytes, declared: tuple[int, int]) -> None:
    """Check a JPEG 2000 codestream after its first two markers (ISO 15444-1, A.5.1 and A.6.1)."""
    width, height, left, top, tile_width, tile_height, tile_left, tile_top = (
        int.from_bytes(stream[place : place + 4], "big") for place in range(4, 36, 4)
    )
    if not tile_width or not tile_height:
        raise DinomedError("damaged or truncated DICOM")
    _check_size("JPEG 2000", (height - top, width - left), declared)
    tiles = math.ceil((width - tile_left) / tile_width) * math.ceil((height - tile_top) / tile_height)
    if tiles > 16 + declared[0] * declared[1] / _MIN_TILE_PX:
        raise DinomedError(f"its JPEG 2000 frame has {tiles:,} tiles, too many for its size")
    style = stream.find(_CODING_STYLE, 36, 4096)
    layers = int.from_bytes(stream[style + 6 : style + 8], "big") if style >= 0 else 1
    if layers > MAX_LAYERS:
        raise DinomedError(f"its JPEG 2000 frame has {layers:,} layers, over the limit of {MAX_LAYERS}")
