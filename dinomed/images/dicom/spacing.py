"""Distance of neighbouring pixels of a DICOM image in mm, and where it holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dinomed.images.dicom.elements import FUNCTIONAL_GROUPS, is_dicom, read_header, reading_dicom

Plane = Literal["patient", "estimated", "ultrasound", "detector", "unknown"]
_TAGS: list[Any] = [
    "PixelSpacing", "PixelSpacingCalibrationType", "ImagerPixelSpacing", "EstimatedRadiographicMagnificationFactor",
    "SequenceOfUltrasoundRegions", "Modality", *FUNCTIONAL_GROUPS,
]  # fmt: skip
_TWO_DIMENSIONAL, _CENTIMETRES = 1, 3  # PS3.3, C.8.5.5.1.1 and C.8.5.5.1.15
_PROJECTIONS = ("CR", "DX", "MG", "XA", "RF", "IO", "PX", "RG")
"""Modalities of projection radiographs, whose Pixel Spacing may be that at the detector."""
_MAX_MM = 1000
_SAME_SCALE = 0.01
"""Largest relative difference of the scales of two regions that count as one."""


@dataclass(frozen=True)
class PixelSpacing:
    """Distance of neighbouring pixels.

    Attributes:
        rows_mm, columns_mm: distance of neighbouring rows, and of neighbouring columns.
        plane: where it holds. ``patient``: in the patient. ``detector``: at the detector of a projection radiograph,
            where everything is larger than in the patient, by an unknown factor. ``estimated``: in the patient, by the
            estimated magnification of a projection radiograph. ``ultrasound``: in the patient, inside the calibrated
            regions of an ultrasound image. ``unknown``: a projection radiograph does not state it.
    """

    rows_mm: float
    columns_mm: float
    plane: Plane

    @property
    def in_patient(self) -> bool:
        """Whether lengths and areas in the image are those in the patient, and no estimate."""
        return self.plane in ("patient", "ultrasound")


def read_pixel_spacing(path: str | Path) -> PixelSpacing | None:
    """Return the pixel spacing of the first frame of a file, or None if it has none or is not DICOM.

    - Pixel Spacing (0028,0030) holds in the patient. Without a calibration type and equal to Imager Pixel Spacing, it
      holds at the detector (PS3.3, 10.7.1.3). Without both elements it is not known where it holds in a projection
      radiograph.
    - Ultrasound regions (0018,6011): the scale of the regions, if all are two-dimensional in cm and have the same. A
      spectral or M-mode region has other units, which the scale would be taken for.
    - Imager Pixel Spacing (0018,1164) holds at the detector. Divided by the Estimated Radiographic Magnification Factor
      (0018,1114), if the file states one, it holds in the patient, as an estimate.

    Raises:
        UnreadableImage: the file is a damaged DICOM.
    """
    if not is_dicom(path):
        return None
    with reading_dicom(path) as file:
        elements = read_header(file, _TAGS)
        for groups in FUNCTIONAL_GROUPS:
            for group in (elements.get(groups) or [])[:1]:
                for item in (group.get("PixelMeasuresSequence") or [])[:1]:
                    elements.update(item)
        return _spacing(elements)


def _spacing(elements: Any) -> PixelSpacing | None:
    pixel, imager = _pair(elements.get("PixelSpacing")), _pair(elements.get("ImagerPixelSpacing"))
    if pixel is not None:
        if elements.get("PixelSpacingCalibrationType") or (imager is not None and imager != pixel):
            return PixelSpacing(*pixel, "patient")
        if imager is not None:
            return PixelSpacing(*pixel, "detector")
        return PixelSpacing(*pixel, "unknown" if elements.get("Modality") in _PROJECTIONS else "patient")
    regions = elements.get("SequenceOfUltrasoundRegions")
    if regions:
        return _ultrasound(regions)
    if imager is None:
        return None
    magnification = float(elements.get("EstimatedRadiographicMagnificationFactor") or 0)
    if 1 <= magnification < 10:
        return PixelSpacing(imager[0] / magnification, imager[1] / magnification, "estimated")
    return PixelSpacing(*imager, "detector")


def _pair(values: Any) -> tuple[float, float] | None:
    """Return the distance of rows and of columns, if both are possible ones."""
    if values is None or isinstance(values, str | int | float) or len(values) != 2:
        return None
    rows, columns = (float(value) for value in values)
    return (rows, columns) if 0 < rows < _MAX_MM and 0 < columns < _MAX_MM else None


def _ultrasound(regions: Any) -> PixelSpacing | None:
    """Return the common scale of the regions; None if they differ, or one is not two-dimensional with a scale in cm."""
    scales = []
    for region in regions:
        units = (region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection"))
        deltas = (region.get("PhysicalDeltaY"), region.get("PhysicalDeltaX"))
        is_plane = region.get("RegionSpatialFormat") == _TWO_DIMENSIONAL
        if not is_plane or units != (_CENTIMETRES, _CENTIMETRES) or None in deltas:
            return None
        scales.append(_pair([abs(float(delta)) * 10 for delta in deltas]))
    first = scales[0] if scales else None
    if first is None or any(scale is None or not _are_close(scale, first) for scale in scales):
        return None
    return PixelSpacing(*first, "ultrasound")


def _are_close(scale: tuple[float, float], first: tuple[float, float]) -> bool:
    return all(abs(a - b) <= _SAME_SCALE * b for a, b in zip(scale, first, strict=True))
