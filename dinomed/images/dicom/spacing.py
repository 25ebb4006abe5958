"""Distance of neighbouring pixels of the frames of a DICOM image in mm, and where it holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dinomed.errors import DinomedError
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
_MAX_REGIONS = 64
"""Largest number of ultrasound regions; a file has a few, and each is compared with each mask."""
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


@dataclass(frozen=True)
class UltrasoundRegion:
    """A region of an ultrasound image.

    Attributes:
        box: first column, first row, last column and last row, px.
        scale: distance of rows and of columns in mm; None if the region is not two-dimensional in cm.
    """

    box: tuple[int, int, int, int]
    scale: tuple[float, float] | None


class FrameSpacings:
    """The pixel spacings of the frames of a DICOM file.

    Args:
        frames: spacing of each frame by its functional groups; one value for all frames without such groups.
        regions: ultrasound regions, which hold for all frames whose spacing is None.
    """

    def __init__(self, frames: Sequence[PixelSpacing | None], regions: Sequence[UltrasoundRegion] = ()) -> None:
        self._frames, self.regions = frames, regions

    def stated(self, frame: int = 0) -> PixelSpacing | None:
        """Return the spacing of a frame without the ultrasound regions, None if it is not known."""
        number = 0 if len(self._frames) == 1 else frame
        return self._frames[number] if number < len(self._frames) else None

    def of(self, frame: int = 0, inside: np.ndarray | None = None) -> PixelSpacing | None:
        """Return the spacing of a frame, None if it is not known.

        Args:
            frame: its number, from 0.
            inside: mask (H, W) of the measured pixels. In an image with regions, all of them must lie in regions of one
                scale; else the spacing is not known. An empty mask has the scale of any region.
        """
        spacing = self.stated(frame)
        if spacing is not None or not self.regions:
            return spacing
        if inside is None:
            return _common_scale(self.regions)
        outside, touched = inside.astype(bool), list[UltrasoundRegion]()
        for region in self.regions:
            left, top, right, bottom = region.box
            if inside[top : bottom + 1, left : right + 1].any():
                touched.append(region)
                outside[top : bottom + 1, left : right + 1] = False
        if outside.any():
            return None
        return _common_scale(touched or [region for region in self.regions if region.scale is not None][:1])


def read_pixel_spacing(path: str | Path, frame: int = 0) -> PixelSpacing | None:
    """Return the pixel spacing of a frame of a file, or None if it has none or is not DICOM.

    - Pixel Spacing (0028,0030) holds in the patient. Without a calibration type and equal to Imager Pixel Spacing, it
      holds at the detector (PS3.3, 10.7.1.3). Without both elements it is not known where it holds in a projection
      radiograph.
    - Ultrasound regions (0018,6011): the scale of the regions, if all are two-dimensional in cm and have the same. A
      spectral or M-mode region has other units, which the scale would be taken for.
    - Imager Pixel Spacing (0018,1164) holds at the detector. Divided by the Estimated Radiographic Magnification Factor
      (0018,1114), if the file states one, it holds in the patient, as an estimate.

    Raises:
        UnreadableImage: the file is a damaged DICOM, or has more than 64 ultrasound regions.
    """
    spacings = read_frame_spacings(path)
    return None if spacings is None else spacings.of(frame)


def read_frame_spacings(path: str | Path) -> FrameSpacings | None:
    """Return the pixel spacings of the frames of a file by the rules of `read_pixel_spacing`; None if it is not DICOM.

    Raises:
        UnreadableImage: the file is a damaged DICOM, or has more than 64 ultrasound regions.
    """
    if not is_dicom(path):
        return None
    with reading_dicom(path) as file:
        elements = read_header(file, _TAGS)
        shared, groups = (list(elements.get(name) or []) for name in FUNCTIONAL_GROUPS)
        common = {name: elements.get(name) for name in _TAGS[:-2]} | _measures(shared[:1])
        frames = [_spacing(common | _measures([group])) for group in groups or [None]]
        regions = common["SequenceOfUltrasoundRegions"] or [] if None in frames else []
        if len(regions) > _MAX_REGIONS:
            raise DinomedError(f"more than {_MAX_REGIONS} ultrasound regions")
        return FrameSpacings(frames, [_region(region) for region in regions])


def _measures(groups: Sequence[Any]) -> dict[str, Any]:
    """Return the pixel spacing of functional groups, as an element of the file."""
    for group in groups:
        for item in (group.get("PixelMeasuresSequence") or [])[:1] if group is not None else []:
            if "PixelSpacing" in item:
                return {"PixelSpacing": item.PixelSpacing}
    return {}


def _spacing(elements: Any) -> PixelSpacing | None:
    pixel, imager = _pair(elements.get("PixelSpacing")), _pair(elements.get("ImagerPixelSpacing"))
    if pixel is not None:
        if elements.get("PixelSpacingCalibrationType") or (imager is not None and imager != pixel):
            return PixelSpacing(*pixel, "patient")
        if imager is not None:
            return PixelSpacing(*pixel, "detector")
        return PixelSpacing(*pixel, "unknown" if elements.get("Modality") in _PROJECTIONS else "patient")
    if elements.get("SequenceOfUltrasoundRegions"):
        return None  # the regions hold
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


def _region(region: Any) -> UltrasoundRegion:
    names = ("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1")
    left, top, right, bottom = (max(int(region.get(name) or 0), 0) for name in names)
    units = (region.get("PhysicalUnitsXDirection"), region.get("PhysicalUnitsYDirection"))
    deltas = (region.get("PhysicalDeltaY"), region.get("PhysicalDeltaX"))
    is_plane = region.get("RegionSpatialFormat") == _TWO_DIMENSIONAL and units == (_CENTIMETRES, _CENTIMETRES)
    scale = _pair([abs(float(delta)) * 10 for delta in deltas]) if is_plane and None not in deltas else None
    return UltrasoundRegion((left, top, right, bottom), scale)


def _common_scale(regions: Sequence[UltrasoundRegion]) -> PixelSpacing | None:
    """Return the scale of regions; None if they differ, or one has none."""
    scales = [region.scale for region in regions]
    first = scales[0] if scales else None
    if first is None or any(scale is None or not _are_close(scale, first) for scale in scales):
        return None
    return PixelSpacing(*first, "ultrasound")


def _are_close(scale: tuple[float, float], first: tuple[float, float]) -> bool:
    return all(abs(a - b) <= _SAME_SCALE * b for a, b in zip(scale, first, strict=True))
