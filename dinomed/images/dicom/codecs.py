"""Reasons for DICOM pixels that cannot be decoded: a codec that is not installed, or a compression without a codec.

pydicom itself decodes uncompressed and RLE frames, and with Pillow JPEG of 8 bits and JPEG 2000. The extra ``dicom``
adds lossless JPEG (GDCM), JPEG-LS (CharLS) and high-throughput JPEG 2000 (OpenJPEG), all with permissive licences.
Video streams (MPEG-2, H.264, HEVC) are decoded by `dinomed.video.embedded_source`.
"""

import re
from pathlib import Path
from typing import Any

from dinomed.images.bounds.dicom_streams import is_dicom_start
from dinomed.images.decode import first_bytes

INSTALL = "pip install 'dinomed[dicom]'"
_JPEG_EXTENDED, _RLE = "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.5"
# MPEG-2 (100, 101), H.264 (102 to 106) and HEVC (107, 108); those of streams in several fragments end with .1
_VIDEO_SYNTAX = re.compile(r"1\.2\.840\.10008\.1\.2\.4\.10[0-8](\.1)?")
_SYNTAX_ELEMENT = b"\x02\0\x10\0UI"


def is_video_syntax(syntax: str | None) -> bool:
    """Return whether the pixels of a DICOM file of this transfer syntax are one video stream."""
    return _VIDEO_SYNTAX.fullmatch(syntax or "") is not None


def transfer_syntax(path: str | Path) -> str | None:
    """Return the transfer syntax of a DICOM file, read from its first bytes; None for another or a damaged file."""
    start = first_bytes(path, 2048)
    place = start.find(_SYNTAX_ELEMENT) + len(_SYNTAX_ELEMENT)
    if not is_dicom_start(start) or place < len(_SYNTAX_ELEMENT):
        return None
    value = start[place + 2 : place + 2 + int.from_bytes(start[place : place + 2], "little")]
    return value.decode("latin-1").rstrip("\0 ")


def holds_video_stream(path: str | Path) -> bool:
    """Return whether a file is DICOM whose pixels are one video stream, by its transfer syntax."""
    return is_video_syntax(transfer_syntax(path))


def undecodable(elements: Any) -> str | None:
    """Return why no codec decodes the pixels of a DICOM file; None if one should, so that the file is damaged.

    Args:
        elements: the elements of the file with its meta information, as pydicom reads them.
    """
    from pydicom.pixels import get_decoder

    syntax = elements.file_meta.get("TransferSyntaxUID")
    if not syntax:
        return "DICOM without a transfer syntax"
    try:
        available = get_decoder(syntax).is_available
    except (NotImplementedError, ValueError):
        return f"DICOM compressed by {_name(syntax)}, which dinomed does not decode; convert its transfer syntax"
    if not available:
        return f"DICOM compressed by {_name(syntax)}, and its codec is not installed; {INSTALL}"
    bits = int(elements.get("BitsStored") or 8)
    if syntax == _JPEG_EXTENDED and bits > 8:
        return f"{bits}-bit pixels compressed by lossy JPEG, which dinomed does not decode; convert it to JPEG 2000"
    if syntax == _RLE and int(elements.get("BitsAllocated") or 8) == 1:
        return "1-bit pixels compressed by RLE, which pydicom does not decode; convert it to explicit little endian"
    return None


def _name(syntax: Any) -> str:
    """Return the name of a transfer syntax, or its number; a damaged value is not shown."""
    from pydicom.uid import UID_dictionary

    if syntax in UID_dictionary:
        return str(UID_dictionary[syntax][0])
    return f"transfer syntax {syntax}" if re.fullmatch(r"[0-9.]{1,64}", syntax) else "an unknown method"
