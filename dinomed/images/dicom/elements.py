"""The elements of a DICOM file that describe its pixels, read within the bounds of `dinomed.images.bounds`.

A DICOM file contains patient data. Therefore only these elements are read, and messages contain neither values of other
elements nor error texts of pydicom, which may contain such values.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from dinomed.errors import DinomedError
from dinomed.images.bounds.containers import too_large
from dinomed.images.bounds.dicom_fragments import count_possible_frames
from dinomed.images.bounds.dicom_streams import bounded_dicom, check_frame, is_dicom_start, pixel_bytes
from dinomed.images.bounds.tiff_samples import MAX_BYTES
from dinomed.images.decode import (
    NO_MEMORY,
    UnreadableImage,
    first_bytes,
    open_regular,
    refusing_with,
)
from dinomed.images.dicom.codecs import is_video_syntax

DAMAGED = "damaged or truncated DICOM"
FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_VOI_ELEMENTS = (
    "VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth", "WindowCenterWidthExplanation",
)  # fmt: skip
_REPLACED = {
    "PixelValueTransformationSequence": ("RescaleSlope", ("ModalityLUTSequence",)),
    "FrameVOILUTSequence": ("WindowCenter", _VOI_ELEMENTS),
}
"""Sequence of a functional group -> an element of its item, and those of the file that do not hold beside it."""
_COLOURS = ("Red", "Green", "Blue")
_TAGS = [
    "SOPClassUID", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence",
    *_VOI_ELEMENTS, "MultienergyCTAcquisition",
    *(f"{colour}PaletteColorLookupTable{part}" for part in ("Descriptor", "Data") for colour in _COLOURS),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in _COLOURS),
    *FUNCTIONAL_GROUPS,
]  # fmt: skip
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")


class NotAnImage(UnreadableImage):
    """A DICOM file without a picture: a report, a directory or a segmentation."""


def is_dicom(path: str | Path) -> bool:
    """Return whether a file is DICOM, by its preamble or, without one, by its file meta information."""
    return is_dicom_start(first_bytes(path, 132))


def is_segmentation(elements: Any) -> bool:
    """Return whether the elements are those of a segmentation object."""
    return str(elements.get("SOPClassUID", "")) in _SEGMENTATIONS


def damage_reason(error: Exception) -> str:
    """Return a short reason for an error. The text of the error is not used: it may contain values of elements."""
    if isinstance(error, OSError) and error.errno is not None:
        return (error.strerror or "cannot be read").lower()
    return NO_MEMORY if isinstance(error, MemoryError) else DAMAGED


@contextmanager
def reading_dicom(path: str | Path, reason: Callable[[Exception], str] = damage_reason) -> Iterator[BinaryIO]:
    """Open a DICOM file, whose errors become an `UnreadableImage` with `reason`."""
    from pydicom import config

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings may contain values of elements
    config.settings.reading_validation_mode = config.IGNORE
    with refusing_with(path, reason), open(path, "rb", opener=open_regular) as file:
        yield file


def read_header(file: BinaryIO, tags: list[Any]) -> Any:
    """Read some elements before the pixels of a file from `reading_dicom`."""
    from pydicom import dcmread

    # a file without a preamble is read with `force`; `is_dicom` has seen its meta information
    return dcmread(bounded_dicom(file), stop_before_pixels=True, specific_tags=tags, force=True)


def read_elements(path: str | Path, max_pixels: int, *, tags: tuple[str, ...] = ()) -> Any:
    """Read the elements that describe the pixels. Those of one frame are returned by `frame_elements`.

    Args:
        path: the file.
        max_pixels: largest number of pixels of a frame.
        tags: further elements to read.

    Raises:
        UnreadableImage: the file is damaged or truncated in its header, without pixels, or too large.
    """
    with reading_dicom(path) as file:
        elements = read_header(file, [*_TAGS, *tags])
        frame_elements(elements, 0)  # damaged groups are found with the header
        rows, columns = int(elements.get("Rows") or 0), int(elements.get("Columns") or 0)
        frame_bytes = pixel_bytes(elements)
        is_stream = is_video_syntax(elements.file_meta.get("TransferSyntaxUID"))
        if rows and columns and rows * columns <= max_pixels and not is_stream:
            check_frame(file, rows, columns, int(elements.get("NumberOfFrames") or 1))
    if not rows or not columns:
        raise NotAnImage(path, "DICOM without pixels")
    if rows * columns > max_pixels:
        raise UnreadableImage(path, too_large(rows * columns, max_pixels))
    if frame_bytes > MAX_BYTES:
        raise UnreadableImage(path, f"{frame_bytes / 1e9:.1f} GB of samples, over the limit of 2.1")
    return elements


def count_held_frames(path: str | Path, elements: Any) -> int:
    """Return the largest number of frames that the pixels of a file can hold, whatever number its header states.

    Args:
        path: the file.
        elements: as of `read_elements`.

    Raises:
        UnreadableImage: the file is damaged or truncated in its header.
    """
    from pydicom import dcmread

    frame_bits = pixel_bytes(elements, 8)  # 8 frames of so many bytes: 1-bit frames fill no whole bytes
    if str(elements.get("PhotometricInterpretation")) == "YBR_FULL_422":  # two of three samples are stored
        frame_bits = frame_bits * 2 // 3
    with reading_dicom(path) as file:
        stream = bounded_dicom(file)
        dcmread(stream, stop_before_pixels=True, specific_tags=["Rows"], force=True)
        return count_possible_frames(stream, frame_bits)


def frame_elements(elements: Any, number: int) -> Any:
    """Return the elements of one frame: slope, intercept, unit and windows of its functional groups (PS3.3, C.7.6.16).

    The group of the frame precedes the shared group, and both precede the elements of the file. A group with a window
    replaces all windows and VOI LUTs of the file, and one with a slope replaces its modality LUT.

    Args:
        elements: of the file, as of `read_elements`; they are not changed.
        number: of the frame, from 0.

    Raises:
        DinomedError: values or windows of some frames are in the file, and not of this one. The message is a reason.
    """
    from pydicom.dataset import Dataset

    shared, groups = (elements.get(name) or [] for name in FUNCTIONAL_GROUPS)
    if number >= len(groups) and any(name in group for group in groups for name in _REPLACED):
        raise DinomedError(
            f"frame {number} has no functional group, but others have values or windows of their own: the file has "
            f"{len(groups)} groups; export it again from its source"
        )
    candidates = [*groups[number : number + 1], *shared[:1]]
    if not candidates:
        return elements
    described = Dataset()
    described.update(elements)
    implicit, little_endian = elements.original_encoding
    described.set_original_encoding(implicit, little_endian, elements.original_character_set)
    for name, (essential, replaced) in _REPLACED.items():
        item = next((items[0] for group in candidates if (items := group.get(name))), None)
        if item is None:
            continue
        for element in replaced if essential in item or "VOILUTSequence" in item else ():
            if element in described:
                del described[element]
        described.update(item)
    return described
