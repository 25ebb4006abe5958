"""MetaImage and NRRD volumes: reading within limits, and writing of each volume format in the geometry of its input."""

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from dinomed.errors import DinomedError
from dinomed.images.bounds.tiff_samples import MAX_BYTES
from dinomed.images.decode import first_bytes, open_regular, refusing
from dinomed.io.files import replacing
from dinomed.io.pseudonyms import content_identifier
from dinomed.volumes.geometry import Grid, lps_to_ras
from dinomed.volumes.itk_headers import HEADER_BYTES, ItkHeader, parse_header
from dinomed.volumes.nifti import SUFFIXES as NIFTI_SUFFIXES
from dinomed.volumes.nifti import is_nifti, label_values, write_nifti

ITK_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
SUFFIXES = (*NIFTI_SUFFIXES, *ITK_SUFFIXES)
"""Suffixes of volumes in files, which DICOM series are not."""
_WRITTEN = {"MetaImage": ".mha", "NRRD": ".nrrd"}
_TYPES = {"MetaImage": {1: "MET_UCHAR", 2: "MET_USHORT"}, "NRRD": {1: "uint8", 2: "uint16"}}
_CHUNK = 2**24
_WBITS = {"zlib": 15, "gzip": 31}


def is_itk(path: str | Path) -> bool:
    """Return whether a file is a MetaImage or NRRD volume, by its name."""
    return str(path).lower().endswith(ITK_SUFFIXES)


def is_volume_file(path: str | Path) -> bool:
    """Return whether a file is a volume in a file of its own, by its name: NIfTI, MetaImage or NRRD."""
    return is_nifti(path) or is_itk(path)


def read_itk(path: str, is_mask: bool = False) -> tuple[dict[str, Any], np.ndarray]:
    """Read a volume; for the decoding process.

    Args:
        path: the file of the header.
        is_mask: read the integers of a label map.

    Returns:
        Facts and values as of `dinomed.volumes.nifti.read_nifti`; `header` has the name of the format.

    Raises:
        UnreadableImage: the file is damaged, truncated, too large, without a geometry or not of three dimensions, its
            data file is missing or outside of its folder, or a mask has values that are no integers in 0 to 65535.
    """
    with refusing(path, private=True):
        header = parse_header(first_bytes(path, HEADER_BYTES))
        Grid(header.shape, header.affine)  # raises for a singular one
        voxels = math.prod(header.shape)
        if voxels * max(4, header.dtype.itemsize) > 2 * MAX_BYTES or voxels * 4 > MAX_BYTES:
            raise DinomedError(f"{voxels:,} voxels, over the limit of {MAX_BYTES // 4:,}")
        with open(data_file(path, header), "rb", opener=open_regular) as file:
            file.seek(header.offset)
            content = _read(file, voxels * header.dtype.itemsize, header.compression)
        values = np.frombuffer(content, header.dtype).reshape(header.shape[::-1]).astype(np.float32)
        values = label_values(values) if is_mask else values
    return {"affine": header.affine.tolist(), "header": {"format": header.format}, "note": None}, values


def data_file(path: str | Path, header: ItkHeader) -> Path:
    """Return the file of the voxels of a volume: its own, or another file of its folder.

    Raises:
        DinomedError: the file does not exist, or is not in the folder of the header.
    """
    if header.data_file is None:
        return Path(path)
    folder = os.path.dirname(os.path.realpath(path))
    file = os.path.realpath(os.path.join(folder, header.data_file))
    if os.path.dirname(file) != folder or os.path.basename(header.data_file) != header.data_file:
        raise DinomedError("its data file is outside of its folder, and is not read; keep both in one folder")
    if not os.path.isfile(file):
        raise DinomedError("its data file is missing; keep both in one folder")
    return Path(file)


def _read(file: IO[bytes], count: int, compression: str) -> bytearray:
    """Read exactly `count` bytes, decompressed."""
    content, done = bytearray(count), 0
    inflater = None if compression == "none" else zlib.decompressobj(_WBITS[compression])
    tail = b""
    try:
        while done < count:
            part = tail or file.read(_CHUNK if inflater is not None else min(_CHUNK, count - done))
            if inflater is not None and inflater.eof:  # gzip may have several members, one after the other
                tail = inflater.unused_data + part
                if not tail or compression != "gzip":
                    raise DinomedError("truncated")
                inflater = zlib.decompressobj(_WBITS[compression])
                continue
            if inflater is not None and part:
                part, tail = inflater.decompress(part, min(_CHUNK, count - done)), inflater.unconsumed_tail
                if not part and (inflater.eof or not tail):
                    continue
            if not part:
                raise DinomedError("truncated")
            content[done : done + len(part)] = part
            done += len(part)
        while inflater is not None and not inflater.eof:  # so that the checksum at the end is compared
            part = tail or file.read(_CHUNK)
            if not part:
                raise DinomedError("truncated")
            if inflater.decompress(part, 1):
                raise DinomedError("compressed data hold more than the header declares")
            tail = inflater.unconsumed_tail
    except zlib.error:
        raise DinomedError("truncated or damaged compressed data") from None
    return content


def written_suffix(header: dict[str, Any] | None) -> str:
    """Return the suffix of the volumes that are written for an input with such a `header` (`VolumeRecord`)."""
    return _WRITTEN.get(str((header or {}).get("format")), ".nii.gz")


def write_volume(path: str | Path, values: np.ndarray, grid: Grid, header: dict[str, Any] | None = None) -> None:
    """Write a volume in the format of its input, atomically; equal values give equal bytes.

    Args:
        path: file, with the suffix of `written_suffix`.
        values: uint8 or uint16, of the shape of `grid`.
        grid: its geometry.
        header: of the input, as `read_nifti` and `read_itk` return it; None for a DICOM series, written as NIfTI.
    """
    suffix = written_suffix(header)
    if suffix == ".nii.gz":
        write_nifti(path, values, grid, header)
        return
    assert values.shape == grid.shape, (values.shape, grid.shape)
    build = _meta_image if suffix == ".mha" else _nrrd
    content = build(np.ascontiguousarray(values.T, values.dtype.newbyteorder("<")), lps_to_ras(grid.affine))
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _meta_image(values: np.ndarray, lps: np.ndarray) -> bytes:
    """Return a MetaImage of values (K, J, I) at an affine to LPS+ coordinates."""
    spacing, data = np.linalg.norm(lps[:3, :3], axis=0), zlib.compress(values.tobytes(), 6)
    lines = [
        "ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False",
        "CompressedData = True", f"CompressedDataSize = {len(data)}",
        f"TransformMatrix = {_text((lps[:3, :3] / spacing).T.ravel())}", f"Offset = {_text(lps[:3, 3])}",
        "CenterOfRotation = 0 0 0", f"ElementSpacing = {_text(spacing)}",
        f"DimSize = {' '.join(map(str, values.shape[::-1]))}",
        f"ElementType = {_TYPES['MetaImage'][values.dtype.itemsize]}", "ElementDataFile = LOCAL",
    ]  # fmt: skip
    return ("\n".join(lines) + "\n").encode() + data


def _nrrd(values: np.ndarray, lps: np.ndarray) -> bytes:
    """Return a NRRD of values (K, J, I) at an affine to LPS+ coordinates."""
    *directions, origin = (f"({_text(lps[:3, column], ',')})" for column in range(4))
    lines = [
        "NRRD0004", f"type: {_TYPES['NRRD'][values.dtype.itemsize]}", "dimension: 3", "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, values.shape[::-1]))}",
        f"space directions: {' '.join(directions)}", "kinds: domain domain domain", "endian: little", "encoding: gzip",
        f"space origin: {origin}",
    ]  # fmt: skip
    return ("\n".join(lines) + "\n\n").encode() + gzip.compress(values.tobytes(), 6, mtime=0)


def _text(numbers: np.ndarray, separator: str = " ") -> str:
    return separator.join(repr(float(number)) for number in numbers)


def voxel_file(path: Path) -> Path:
    """Return the file that holds the voxels of a volume: the file itself, or the data file of its header."""
    try:
        return data_file(path, parse_header(first_bytes(path, HEADER_BYTES))) if is_itk(path) else path
    except (DinomedError, ValueError):
        return path  # it is reported when it is read


def volume_identifier(path: Path) -> str:
    """Return the identifier of a volume for `pseudonym`: the hash of its file, and of its data file if it has one.

    Raises:
        UsageError: a file cannot be read.
    """
    file = voxel_file(path)
    return content_identifier(path) if file == path else f"{content_identifier(path)} {content_identifier(file)}"
