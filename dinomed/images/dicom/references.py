"""Whether a DICOM segmentation belongs to a DICOM image: by its references, and by position and orientation."""

from pathlib import Path
from typing import Any

import numpy as np

from dinomed.errors import DinomedError
from dinomed.images.dicom.elements import FUNCTIONAL_GROUPS, read_header, reading_dicom
from dinomed.images.dicom.segmentation import frame_item

_PLACES = {"ImagePositionPatient": "PlanePositionSequence", "ImageOrientationPatient": "PlaneOrientationSequence"}
_TAGS: list[Any] = [
    "SOPInstanceUID", "SeriesInstanceUID", "ReferencedSeriesSequence", *_PLACES, *FUNCTIONAL_GROUPS
]  # fmt: skip
_TOLERANCE = {"ImagePositionPatient": 0.05, "ImageOrientationPatient": 1e-3}
"""Largest difference in mm, and of a cosine: scanners write at least 4 decimals."""


def check_belongs(segmentation: str | Path, image: str | Path, number: int = 0) -> None:
    """Raise if a segmentation of one plane contradicts the image of which it is to be the mask.

    Compared is what both files state: the image or the series that the segmentation references, position, orientation.

    Args:
        segmentation: path of a DICOM segmentation.
        image: path of a DICOM image.
        number: frame of the image, from 0.

    Raises:
        UnreadableImage: of the segmentation, with the contradiction; or one of the files is damaged.
    """
    with reading_dicom(image) as file:
        picture = read_header(file, _TAGS)
        image_place = _place(picture, number)
    with reading_dicom(segmentation) as file:
        mask = read_header(file, _TAGS)
        series = list(mask.get("ReferencedSeriesSequence") or [])
        listed = [item for one in series for item in one.get("ReferencedInstanceSequence") or []]
        sources = [item for group in _groups(mask) for item in _sources(mask, group)]
        frames = {int(n) for item in sources for n in np.atleast_1d(item.get("ReferencedFrameNumber") or [])}
        references = {str(item.get("ReferencedSOPInstanceUID")) for item in sources or listed}
        if references and "SOPInstanceUID" in picture and str(picture.SOPInstanceUID) not in references:
            raise DinomedError("a DICOM segmentation of another image: it references other SOP Instance UIDs")
        if frames and number + 1 not in frames:
            raise DinomedError("a DICOM segmentation of another frame of the image")
        of_series = {str(one.get("SeriesInstanceUID")) for one in series}
        if of_series and "SeriesInstanceUID" in picture and str(picture.SeriesInstanceUID) not in of_series:
            raise DinomedError("a DICOM segmentation of another image: it references another series")
        for name, values in _place(mask, 0).items():
            expected = image_place.get(name)
            if expected is not None and np.abs(values - expected).max() > _TOLERANCE[name]:
                words = "position" if name == "ImagePositionPatient" else "orientation"
                raise DinomedError(f"a DICOM segmentation with another {words} in the patient than its image")


def _groups(elements: Any) -> list[Any]:
    return list(elements.get(FUNCTIONAL_GROUPS[1]) or [None])


def _shared(elements: Any) -> Any:
    return (elements.get(FUNCTIONAL_GROUPS[0]) or [None])[0]


def _sources(elements: Any, group: Any) -> list[Any]:
    """Return the images of which a frame of a segmentation was made."""
    derivation = frame_item(group, _shared(elements), "DerivationImageSequence")
    return list(derivation.get("SourceImageSequence") or []) if derivation is not None else []


def _place(elements: Any, number: int) -> dict[str, np.ndarray]:
    """Return position and orientation of a frame, those that the file states."""
    place = {}
    group = (_groups(elements)[number:] or [None])[0]
    for name, sequence in _PLACES.items():
        item = frame_item(group, _shared(elements), sequence)
        value = (elements if item is None else item).get(name)
        if value is not None and len(value) == (3 if name == "ImagePositionPatient" else 6):
            place[name] = np.array([float(part) for part in value])
    return place
