"""NIfTI volumes in single files (.nii, .nii.gz): reading within limits, and writing in the geometry of an input.

nibabel reads the header. The voxels are read here: exactly as many bytes as the header declares, so that a compressed
file cannot fill the memory, and no header extension, which may hold data of the patient.
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from dinomed.errors import DinomedError, UsageError
from dinomed.images.bounds.tiff_samples import MAX_BYTES
from dinomed.images.decode import first_bytes, open_regular, refusing
from dinomed.io.files import replacing
from dinomed.packages import installed_version
from dinomed.volumes.geometry import MISALIGNED_VOXELS, Grid, corner_voxels

SUFFIXES = (".nii", ".nii.gz")
INSTALL = "pip install 'dinomed[volumes]'"
_GZIP = b"\x1f\x8b"
_MAX_OFFSET = 2**26
_MAX_SIDE = 2**15 - 1  # of NIfTI-1
_TRAILER, _CHUNK = 2**16, 2**24
_METRE, _MICRON = 1, 3  # codes of xyzt_units
_GEOMETRY = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x",
    "srow_y", "srow_z", "pixdim", "xyzt_units",
)  # fmt: skip
"""The fields of the header that hold the geometry; a written volume has those of its input."""


def is_nifti(path: str | Path) -> bool:
    """Return whether a file is a NIfTI volume in a single file, by its name."""
    return str(path).lower().endswith(SUFFIXES)


def check_nibabel() -> None:
    """Raise a `UsageError` if nibabel is not installed."""
    if installed_version("nibabel") is None:
        raise UsageError(f"NIfTI volumes need the package nibabel; {INSTALL}")


def read_nifti(path: str, is_mask: bool = False) -> tuple[dict[str, Any], np.ndarray]:
    """Read a volume; for the decoding process.

    Args:
        path: the file.
        is_mask: read the integers of a label map.

    Returns:
        Facts of JSON types (`affine`, rows of the affine to RAS+ in mm; `header`, the fields of the geometry; `note`,
        the contradiction of its two affines, or None), and the values in reversed order of axes, (K, J, I): float32
        with the slope of the header, or uint16 of a mask.

    Raises:
        UnreadableImage: the file is no NIfTI, damaged, truncated, too large, without an affine, not of three
            dimensions, or not of numbers; or a mask has values that are no integers in 0 to 65535.
    """
    with refusing(path, private=True), _opened(path) as file:
        header, count = _read_header(file)
        shape, dtype = _shape(header), header.get_data_dtype()
        affine = _affine(header)
        if dtype.kind not in "iuf" or dtype.itemsize > 8:
            raise DinomedError("a NIfTI of colours or complex numbers; give one with a number for each voxel")
        if math.prod(shape) * max(4, dtype.itemsize) > 2 * MAX_BYTES or math.prod(shape) * 4 > MAX_BYTES:
            raise DinomedError(f"{math.prod(shape):,} voxels, over the limit of {MAX_BYTES // 4:,}")
        offset = int(header["vox_offset"]) or count
        if not count <= offset <= _MAX_OFFSET:
            raise DinomedError("a damaged NIfTI header: the place of its voxels")
        _read(file, offset - count)
        stored = np.frombuffer(_read(file, math.prod(shape) * dtype.itemsize), dtype).reshape(shape[::-1])
        file.read(_TRAILER)  # so that the checksum at the end of a compressed file is compared
        values = _scaled(stored, header)
        values = label_values(values) if is_mask else values
    fields = {name: np.nan_to_num(np.asarray(header[name])).tolist() for name in _GEOMETRY}  # JSON has no NaN
    return {"affine": affine.tolist(), "header": fields, "note": _contradiction(header, affine, shape)}, values


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """Open a file, decompressed if it is compressed."""
    with open(path, "rb", opener=open_regular) as file:
        if first_bytes(path, 2) != _GZIP:
            yield file
            return
        with gzip.GzipFile(fileobj=file, mode="rb") as stream:
            try:
                yield stream  # type: ignore[misc]
            except (EOFError, zlib.error, gzip.BadGzipFile):
                raise DinomedError("truncated or damaged compressed data") from None


def _read(file: IO[bytes], count: int) -> bytearray:
    """Read exactly `count` bytes."""
    data = bytearray(count)
    view, done = memoryview(data), 0
    while done < count:
        number = file.readinto(view[done : done + _CHUNK])  # type: ignore[attr-defined]
        if not number:
            raise DinomedError("truncated")
        done += number
    return data


def _read_header(file: IO[bytes]) -> tuple[Any, int]:
    """Read the header of a single file: as nibabel's class, and its number of bytes.

    Raises:
        DinomedError: the file is no NIfTI of a single file.
    """
    check_nibabel()
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    start = bytes(_read(file, 348))
    size = {int.from_bytes(start[:4], order) for order in ("little", "big")}
    if 348 in size and start[344:348] == b"n+1\0":
        return Nifti1Header(start, check=False), 348
    if 540 in size and start[4:8] == b"n+2\0":
        return Nifti2Header(start + bytes(_read(file, 540 - 348)), check=False), 540
    raise DinomedError("not a NIfTI volume in a single file (.nii, .nii.gz)")


def _shape(header: Any) -> tuple[int, int, int]:
    """Return the numbers of voxels of a volume of three dimensions; further ones must be 1."""
    count, *sizes = (int(size) for size in header["dim"])
    if not 1 <= count <= 7 or min(sizes[:count]) < 1:
        raise DinomedError("a damaged NIfTI header: the number of its voxels")
    sizes = sizes[:count]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) != 3:
        raise DinomedError(
            f"{len(sizes)} dimensions ({'x'.join(map(str, sizes))}), such as a time series or a single image; a volume "
            "has 3: write each volume to a file of its own"
        )
    if max(sizes) > _MAX_SIDE:
        raise DinomedError(f"{max(sizes)} voxels along an axis; the limit is {_MAX_SIDE}")
    return sizes[0], sizes[1], sizes[2]


def _affine(header: Any) -> np.ndarray:
    """Return the affine to RAS+ coordinates in mm, by the sform, or else the qform (as nibabel)."""
    if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        raise DinomedError(
            "a NIfTI without an affine (the codes of sform and qform are 0), so that its orientation is unknown; "
            "convert it again from its source"
        )
    if int(header["xyzt_units"]) % 8 in (_METRE, _MICRON):
        raise DinomedError("its spacing is in metres or micrometres; write it in mm")
    affine = np.asarray(header.get_best_affine(), np.float64)
    Grid(_shape(header), affine)  # raises for a singular one
    return affine


def _contradiction(header: Any, affine: np.ndarray, shape: tuple[int, int, int]) -> str | None:
    """Return how a valid qform differs from the sform, which is used, in one line; None if no corner differs by more
    than `MISALIGNED_VOXELS`, or the header has only one of them.
    """
    if int(header["sform_code"]) <= 0 or int(header["qform_code"]) <= 0:
        return None
    try:
        other = np.asarray(header.get_qform(), np.float64)
        Grid(shape, other)
    except Exception:  # nibabel raises errors of several types for an impossible qform, which then is no second affine
        return None
    shift = (other - affine) @ corner_voxels(shape).T
    if np.abs(np.linalg.solve(affine, shift)).max() <= MISALIGNED_VOXELS:
        return None
    codes = f"sform (code {int(header['sform_code'])}) and qform (code {int(header['qform_code'])})"
    distance = np.linalg.norm(shift[:3], axis=0).max()
    return (
        f"its {codes} contradict each other: they place a voxel up to {distance:.3g} mm apart; the sform is used, as "
        "in nibabel; if the qform is right, set the sform code to 0"
    )


def _scaled(stored: np.ndarray, header: Any) -> np.ndarray:
    """Return the values by the slope and the intercept of the header, float32."""
    values = stored.astype(np.float32)
    slope, intercept = header.get_slope_inter()
    if slope is not None and (slope, intercept) != (1, 0):
        values *= np.float32(slope)
        values += np.float32(intercept)
    return values


def label_values(values: np.ndarray) -> np.ndarray:
    """Return the values of a label map, uint16.

    Raises:
        DinomedError: a value is no integer, or outside of 0 to 65535.
    """
    if not np.isfinite(values).all() or values.min() < 0 or values.max() >= 2**16:
        raise DinomedError("values outside of 0 to 65535; a label map has a class number for each voxel")
    integers = values.astype(np.uint16)
    if (integers != values).any():
        raise DinomedError("some values are not integers; the values of a label map must be integers")
    return integers


def write_nifti(path: str | Path, values: np.ndarray, grid: Grid, header: dict[str, Any] | None = None) -> None:
    """Write a volume as a NIfTI-1 file, atomically; equal values give equal bytes.

    Args:
        path: file, .nii.gz.
        values: uint8 or uint16, of the shape of `grid`.
        grid: its geometry.
        header: the fields of the geometry of the input, if that was a NIfTI file (`read_nifti`): they are written as
            they are. Otherwise the sform and the qform are computed of the affine, in 32 bits.
    """
    check_nibabel()
    from nibabel.nifti1 import Nifti1Image

    assert values.shape == grid.shape, (values.shape, grid.shape)
    image = Nifti1Image(values, grid.affine)
    image.header.set_xyzt_units("mm")
    if header is None:
        image.set_sform(grid.affine, code="scanner")
        # a qform has no shear: a reader that takes it would show the mask elsewhere
        image.set_qform(grid.affine, code="unknown" if grid.is_sheared else "scanner", strip_shears=True)
    else:
        for name, value in header.items():
            image.header[name] = value
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), 6, mtime=0))
