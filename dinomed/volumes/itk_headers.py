"""Headers of MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr) volumes, the formats of ITK, 3D Slicer and ITK-SNAP.

A header is text. Only the fields that describe the voxels and their geometry are used.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dinomed.errors import DinomedError
from dinomed.volumes.geometry import lps_to_ras

HEADER_BYTES = 2**16
"""Largest number of bytes of a header."""
_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
_NRRD_NAMES = {
    "i1": ("signed char", "int8", "int8_t"), "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"), "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",), "f8": ("double",),
}  # fmt: skip
_NRRD_TYPES = {name: code for code, names in _NRRD_NAMES.items() for name in names}
_TO_RAS = {  # signs from the space of a NRRD
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
}  # fmt: skip
_UNKNOWN = "so that its orientation is unknown; convert it again from its source"
_SEVERAL_FILES = "its voxels are in several files; write them as one file"


@dataclass(frozen=True)
class ItkHeader:
    """How the voxels of a volume are stored, and where they are in the patient.

    Attributes:
        format: ``MetaImage`` or ``NRRD``.
        shape: numbers of voxels along the axes, of which the first varies fastest in the file.
        dtype: type of the stored numbers, with their byte order.
        affine: (4, 4), to RAS+ coordinates in mm.
        compression: of the voxels.
        offset: place of the voxels in their file, bytes.
        data_file: name of the file of the voxels; None if they follow the header.
    """

    format: Literal["MetaImage", "NRRD"]
    shape: tuple[int, int, int]
    dtype: np.dtype
    affine: np.ndarray
    compression: Literal["none", "zlib", "gzip"]
    offset: int
    data_file: str | None


def parse_header(start: bytes) -> ItkHeader:
    """Return the header of a volume.

    Args:
        start: the first `HEADER_BYTES` of its file.

    Raises:
        DinomedError: the header is damaged, or describes no volume that is read. The message is a reason.
    """
    header = _parse_nrrd(start) if start.startswith(b"NRRD000") else _parse_meta_image(start)
    if "\0" in (header.data_file or ""):
        raise DinomedError("a damaged header: the name of its data file")
    return header


def _parse_meta_image(start: bytes) -> ItkHeader:
    fields: dict[str, str] = {}
    place = 0
    while "ElementDataFile" not in fields:
        end = start.find(b"\n", place)
        name, sign, value = start[place : max(end, 0)].decode("latin-1").partition("=")
        if end < 0 or not sign:
            raise DinomedError("not a MetaImage volume, or a damaged header")
        fields[name.strip()] = value.strip()
        place = end + 1
    if fields.get("ObjectType", "Image") != "Image":
        raise DinomedError("a MetaImage that is no image")
    _check_dimensions(fields.get("NDims"))
    if fields.get("ElementNumberOfChannels", "1") != "1":
        raise DinomedError("a MetaImage of colours or vectors; give one with a number for each voxel")
    if fields.get("BinaryData", "True").lower() != "true":
        raise DinomedError("a MetaImage whose voxels are text; write them as binary data")
    if _first(fields, "TransformMatrix", "Rotation", "Orientation") is None:
        raise DinomedError(f"a MetaImage without a TransformMatrix, {_UNKNOWN}")
    if _first(fields, "Offset", "Position", "Origin") is None:
        raise DinomedError(f"a MetaImage without an Offset, {_UNKNOWN}")
    for name, neutral in (("ElementToIntensityFunctionSlope", 1), ("ElementToIntensityFunctionOffset", 0)):
        if name in fields and _numbers(fields[name], 1, name) != [neutral]:
            raise DinomedError("a MetaImage with a slope of its values; write the values themselves")
    directions = np.reshape(
        _numbers(_first(fields, "TransformMatrix", "Rotation", "Orientation"), 9, "TransformMatrix"), (3, 3)
    )
    affine = np.eye(4)
    affine[:3, :3] = directions.T * _numbers(_first(fields, "ElementSpacing", "ElementSize"), 3, "ElementSpacing")
    affine[:3, 3] = _numbers(_first(fields, "Offset", "Position", "Origin"), 3, "Offset")
    code = _META_TYPES.get(fields.get("ElementType", ""))
    if code is None:
        raise DinomedError("a MetaImage of a type that is no number, or unknown")
    is_big = (_first(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB") or "False").lower() == "true"
    data, skipped = fields["ElementDataFile"], _numbers(fields.get("HeaderSize", "0"), 1, "HeaderSize")[0]
    is_local = data.upper() == "LOCAL"
    if data.split(" ")[0].upper() == "LIST" or "%" in data:
        raise DinomedError(_SEVERAL_FILES)
    if skipped < 0 or (is_local and skipped):
        raise DinomedError("a MetaImage whose HeaderSize is not supported; write its voxels without a header")
    return ItkHeader(
        "MetaImage", _shape(fields.get("DimSize")), np.dtype((">" if is_big else "<") + code), lps_to_ras(affine),
        "zlib" if fields.get("CompressedData", "False").lower() == "true" else "none",
        place if is_local else int(skipped), None if is_local else data,
    )  # fmt: skip


def _parse_nrrd(start: bytes) -> ItkHeader:
    fields: dict[str, str] = {}
    place = start.find(b"\n") + 1
    while True:
        end = start.find(b"\n", place)
        if end < 0 or not place:
            if not place or not (_first(fields, "data file", "datafile")):
                raise DinomedError("a damaged NRRD header: it has no end")
            end = len(start)  # a detached header may end without an empty line
        line = start[place:end].decode("latin-1").strip()
        place = end + 1
        if not line:
            break
        if not line.startswith("#") and ":=" not in line:
            name, sign, value = line.partition(":")
            if not sign:
                raise DinomedError("a damaged NRRD header")
            fields[name.strip().lower()] = value.strip()
    _check_dimensions(fields.get("dimension"))
    space = fields.get("space", "").lower()
    directions = re.findall(r"\(([^()]*)\)", fields.get("space directions", ""))
    if space not in _TO_RAS or len(directions) != 3 or "space origin" not in fields:
        raise DinomedError(
            f"a NRRD without space directions and origin, or in a space that is not that of the patient, {_UNKNOWN}"
        )
    units = {unit.lower() for unit in re.findall(r'"([^"]*)"', fields.get("space units", ""))}
    if units - {"mm", "millimeter", "millimeters", ""}:
        raise DinomedError("its spacing is not in mm; write it in mm")
    affine = np.eye(4)
    affine[:3, :3] = np.transpose([_numbers(vector, 3, "space directions") for vector in directions])
    affine[:3, 3] = _numbers(fields["space origin"].strip("()"), 3, "space origin")
    code = _NRRD_TYPES.get(fields.get("type", "").lower())
    if code is None:
        raise DinomedError("a NRRD of a type that is no number, or unknown")
    order = {"little": "<", "big": ">"}.get(fields.get("endian", "").lower(), "|" if code[1] == "1" else "")
    if not order:
        raise DinomedError("a NRRD without its byte order (endian)")
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise DinomedError("a NRRD whose encoding is not raw or gzip; write it again by one of them")
    if any((_first(fields, name, name.replace(" ", "")) or "0") != "0" for name in ("line skip", "byte skip")):
        raise DinomedError("a NRRD with skipped lines or bytes; write its voxels without a header")
    data = _first(fields, "data file", "datafile")
    if data is not None and (data.upper().startswith("LIST") or "%" in data):
        raise DinomedError(_SEVERAL_FILES)
    return ItkHeader(
        "NRRD", _shape(fields.get("sizes")), np.dtype(order + code), np.diag([*_TO_RAS[space], 1.0]) @ affine,
        "none" if encoding == "raw" else "gzip", 0 if data else place, data,
    )  # fmt: skip


def _first(fields: Mapping[str, str], *names: str) -> str | None:
    """Return the value of the first field that is there."""
    return next((fields[name] for name in names if name in fields), None)


def _check_dimensions(text: str | None) -> None:
    if text != "3":
        number = int(text) if text is not None and text.isdecimal() and len(text) < 6 else 0
        if not number:
            raise DinomedError("a damaged header: the number of its dimensions")
        reason = "such as a time series or vectors; a volume has 3: write each volume to a file of its own"
        raise DinomedError(f"{number} dimensions, {reason}")


def _shape(text: str | None) -> tuple[int, int, int]:
    sizes = [int(size) for size in _numbers(text, 3, "numbers of voxels")]
    if min(sizes) < 1 or max(sizes) >= 2**15:
        raise DinomedError("a damaged header: the numbers of its voxels")
    return sizes[0], sizes[1], sizes[2]


def _numbers(text: str | None, count: int, words: str) -> list[float]:
    """Return the numbers of a field, separated by spaces or commas."""
    try:
        numbers: Sequence[float] = [float(number) for number in (text or "").replace(",", " ").split()]
    except ValueError:
        numbers = ()
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise DinomedError(f"a damaged header: {words}")
    return list(numbers)
