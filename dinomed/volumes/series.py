"""DICOM series: the frames of their files, and the grid of a series by the positions of its frames.

The order of the slices is that of their positions in the patient. Names of files and instance numbers are not used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dinomed.errors import DinomedError
from dinomed.images.bounds.dicom_streams import bounded_dicom
from dinomed.images.bounds.tiff_samples import MAX_BYTES
from dinomed.images.decode import MAX_PIXELS, UnreadableImage
from dinomed.images.dicom.elements import (
    DAMAGED,
    FUNCTIONAL_GROUPS,
    NotAnImage,
    frame_elements,
    is_segmentation,
    read_elements,
    reading_dicom,
)
from dinomed.images.dicom.patient import PATIENT, STUDY, identifier_of
from dinomed.images.dicom.pixels import decoding_reason, find_padding
from dinomed.volumes.completeness import COUNTS, read_counts
from dinomed.volumes.geometry import Grid, lps_to_ras

_IDS = (PATIENT, STUDY, "SeriesInstanceUID", "FrameOfReferenceUID", "Modality")
_PLACES = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_SEQUENCES = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
}
_SAME_DIRECTION = 1e-3
"""Largest difference of the cosines of two slices of one orientation; scanners write at least 4 decimals."""
_SAME_MM = 1e-3
"""Largest difference of two equal lengths or positions, mm. Converters that compute in float32 change a position of 1 m
by 6e-5 mm; the closest frames of scanners, those of optical coherence tomography and micro-CT, are about 5e-3 mm
apart."""
_UNEVEN = 0.05
"""Largest deviation of a distance of slices from their median, as a share: positions are often rounded to 0.01 mm."""
_GAP = 1.5


@dataclass(frozen=True)
class DicomFrame:
    """The place of a frame.

    Attributes:
        path: its file.
        number: number of the frame in the file, from 0.
        size: rows and columns.
        position: centre of its first pixel, LPS+ in mm.
        orientation: directions in which the column number and the row number grow.
        spacing: distance of rows and of columns in mm.
        ids: patient, study, series, frame of reference and modality; None where unknown.
        counts: what the headers count, as of `dinomed.volumes.completeness.read_counts`.
    """

    path: str
    number: int
    size: tuple[int, int]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    ids: dict[str, str | None]
    counts: dict[str, Any] = field(default_factory=dict)


def read_places(path: str) -> tuple[dict[str, Any], None]:
    """Read the places of the frames of a file; for the decoding process.

    Returns:
        `ids`, `size`, `places` (position, orientation and spacing) and `counts` of each frame.

    Raises:
        UnreadableImage: the file is damaged, in colour, or has no position; or a `NotAnImage`.
    """
    try:
        elements = read_elements(path, MAX_PIXELS, tags=(*_IDS, *_PLACES, *COUNTS))
    except NotAnImage:
        if _is_cut_image(path):
            raise UnreadableImage(path, DAMAGED) from None
        raise
    with reading_dicom(path):
        if is_segmentation(elements):
            raise NotAnImage(path, "a DICOM segmentation, not an image")
        if int(elements.get("SamplesPerPixel") or 1) != 1 or elements.get("PhotometricInterpretation") != "MONOCHROME2":
            raise DinomedError("a DICOM in colour or MONOCHROME1; a volume has MONOCHROME2")
        places = _frame_places(elements)
        ids = {name: identifier_of(elements, name) for name in _IDS}
        size = [int(elements.Rows), int(elements.Columns)]
        counts = [read_counts(elements, group) for group in elements.get(FUNCTIONAL_GROUPS[1]) or [None]]
    return {"ids": ids, "size": size, "places": places, "counts": counts}, None


def _is_cut_image(path: str) -> bool:
    """Return whether a file without pixels is an image by its meta information, or ends in this information."""
    from pydicom.filereader import read_file_meta_info

    try:
        return str(read_file_meta_info(path).MediaStorageSOPClassUID.name).endswith("Image Storage")
    except Exception:  # pydicom raises errors of many types
        return True


def read_frame_places(path: str) -> list[list[list[float]]]:
    """Return position, orientation and spacing of each frame of a file, such as a segmentation.

    Raises:
        UnreadableImage: the file is damaged, or a frame has no position.
    """
    elements = read_elements(path, MAX_PIXELS, tags=_PLACES)
    with reading_dicom(path):
        return _frame_places(elements)


def _frame_places(elements: Any) -> list[list[list[float]]]:
    shared = (elements.get(FUNCTIONAL_GROUPS[0]) or [None])[0]
    groups = list(elements.get(FUNCTIONAL_GROUPS[1]) or [None])
    if int(elements.get("NumberOfFrames") or 1) != len(groups):
        raise DinomedError("a DICOM of several frames without their positions; a volume needs them")
    return [[_numbers(elements, group, shared, name) for name in _PLACES] for group in groups]


def _numbers(elements: Any, group: Any, shared: Any, name: str) -> list[float]:
    """Return the numbers of an element of a frame.

    Raises:
        DinomedError: the element is missing, or has another number of values.
    """
    value = elements.get(name)
    for item in (shared, group):
        for part in (item.get(_SEQUENCES[name]) or [])[:1] if item is not None else []:
            value = part.get(name, value)
    count = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}[name]
    numbers = [] if value is None or isinstance(value, str | float | int) else [float(number) for number in value]
    if len(numbers) != count or not np.isfinite(numbers).all():
        words = {"ImagePositionPatient": "position", "ImageOrientationPatient": "orientation"}
        raise DinomedError(f"a DICOM without the {words.get(name, 'pixel spacing')} of its pixels in the patient")
    return numbers


def read_frame(path: str, number: int) -> tuple[None, np.ndarray]:
    """Read a frame (rows, columns) in modality units, float32, NaN where it is padding; for the decoding process.

    Raises:
        UnreadableImage: the frame is damaged, or needs a codec that is not installed.
    """
    from pydicom.pixels import apply_modality_lut, pixel_array

    elements = read_elements(path, MAX_PIXELS)
    with reading_dicom(path, lambda error: decoding_reason(error, elements)) as file:
        stored = np.asarray(pixel_array(bounded_dicom(file), index=number))
        values = np.asarray(apply_modality_lut(stored, frame_elements(elements, number)), np.float32)
        padding = find_padding(stored, elements)
    if padding is not None:
        values = values.copy()
        values[padding] = np.nan
    return None, values


def have_one_orientation(orientations: Sequence[Sequence[float]]) -> bool:
    """Return whether the orientations of frames are that of the first one, but for rounding."""
    return bool(np.abs(np.array(orientations) - orientations[0]).max() <= _SAME_DIRECTION)


def have_one_spacing(spacings: Sequence[Sequence[float]]) -> bool:
    """Return whether the spacings of frames, in mm, are that of the first one, but for rounding."""
    return bool(np.abs(np.array(spacings) - spacings[0]).max() <= _SAME_MM)


def have_distinct_positions(positions: Sequence[Sequence[float]]) -> bool:
    """Return whether no two frames have one position, (N, 3) in mm, but for rounding."""
    from scipy.spatial import cKDTree

    distinct = np.unique(np.array(positions), axis=0)
    if len(distinct) < len(positions):
        return False
    distances, _ = cKDTree(distinct).query(distinct, k=2)  # the nearest point is the point itself
    return bool(distances[:, 1].min() > _SAME_MM)


def sort_frames(frames: Sequence[DicomFrame]) -> tuple[list[DicomFrame], Grid]:
    """Return the frames of a series in the order of their positions, and the grid of ``values[column, row, slice]``.

    Raises:
        DinomedError: the frames are of several patients or frames of reference, or differ in size, spacing or
            orientation; a slice is missing or doubled, or distances are uneven; there is one slice only; or the volume
            is too large. The message is a reason without the path.
    """
    first = frames[0]
    for name, words in (("PatientID", "patients"), ("FrameOfReferenceUID", "frames of reference")):
        if (count := len({frame.ids[name] for frame in frames})) > 1:
            raise DinomedError(f"a series with {count} {words}; separate them")
    if len({frame.size for frame in frames}) > 1:
        sizes = sorted({f"{frame.size[1]}x{frame.size[0]}" for frame in frames})
        raise DinomedError(f"slices of several sizes ({', '.join(sizes[:4])}); separate them")
    if not have_one_orientation([frame.orientation for frame in frames]):
        raise DinomedError("slices of several orientations, as of a localizer; separate them")
    if not have_one_spacing([frame.spacing for frame in frames]):
        raise DinomedError("slices of several pixel spacings; separate them")
    if len(frames) < 2:
        raise DinomedError("a series of one slice; `dinomed scan` reads single images")
    rows, columns = first.size
    if rows * columns * len(frames) * 4 > MAX_BYTES:
        raise DinomedError(f"{rows * columns * len(frames):,} voxels, over the limit of {MAX_BYTES // 4:,}")
    along_columns, along_rows = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    normal = np.cross(along_columns, along_rows)
    positions = np.array([frame.position for frame in frames])
    distances = positions @ normal
    order = np.argsort(distances, kind="stable")
    _check_distances(np.diff(distances[order]))
    positions = positions[order]
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    expected = positions[0] + np.arange(len(frames))[:, None] * step
    if np.linalg.norm(positions - expected, axis=1).max() > max(_UNEVEN * np.linalg.norm(step), _SAME_MM):
        raise DinomedError("slices whose positions are not on a line; separate the parts of the series")
    affine = np.eye(4)
    affine[:3] = np.stack([along_columns * first.spacing[1], along_rows * first.spacing[0], step, positions[0]], axis=1)
    return [frames[index] for index in order], Grid((columns, rows, len(frames)), lps_to_ras(affine))


def _check_distances(steps: np.ndarray) -> None:
    """Raise a `DinomedError` if slices, in order, are doubled or missing, or not evenly spaced; `steps` in mm."""
    doubled = int((steps < _SAME_MM).sum())
    if doubled:
        raise DinomedError(f"{doubled} doubled slices (of one position), as of several phases or times; separate them")
    median = float(np.sort(steps)[(len(steps) - 1) // 2])  # the lower one: of two distances, one may be a gap
    gaps = np.flatnonzero(steps > _GAP * median)
    if len(gaps):
        lost = int(sum(max(1, round(steps[gap] / median) - 1) for gap in gaps))
        raise DinomedError(
            f"about {lost} missing slices: after slice {gaps[0] + 1} of {len(steps) + 1} the distance is "
            f"{steps[gaps[0]]:.2f} mm instead of {median:.2f} mm; give the whole series"
        )
    if np.abs(steps - median).max() > _UNEVEN * median:
        raise DinomedError(
            f"slices at uneven distances, {steps.min():.2f} to {steps.max():.2f} mm; resample the series"
        )
