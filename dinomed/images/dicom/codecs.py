"""Reasons for DICOM pixels that cannot be decoded: a codec that is not installed, or a compression without a codec.

pydicom itself decodes uncompressed and RLE frames, and with Pillow JPEG of 8 bits and JPEG 2000. The extra ``dicom``
adds lossless JPEG (GDCM), JPEG-LS (CharLS) and high-throughput JPEG 2000 (OpenJPEG), all with permissive licences.
"""

import re
from typing import Any

INSTALL = "pip install 'dinomed[dicom]'"
_JPEG_EXTENDED, _RLE = "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.5"


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
