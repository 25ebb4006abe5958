"""DICOM segmentations (SEG): their frames, and the mask or the label map of one image."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.errors import DinomedError
from dinomed.images.bounds.dicom_streams import bounded_dicom, pixel_bytes
from dinomed.images.bounds.tiff_samples import MAX_BYTES
from dinomed.images.decode import MAX_PIXELS
from dinomed.images.dicom.elements import FUNCTIONAL_GROUPS, is_segmentation, read_elements, reading_dicom
from dinomed.images.dicom.pixels import decoding_reason

_MAX_FRAMES = 100_000


@dataclass(frozen=True)
class Segmentation:
    """The frames of a segmentation.

    Attributes:
        frames: (frames, H, W). Binary: uint8 of 0 and 1, one segment a frame. Label map: the number of the segment of
            each pixel, 0 for none.
        segments: number of the segment of each frame; of a label map, 0.
        planes: the place of each frame as text: its position in the patient, or the image to which it belongs.
    """

    frames: np.ndarray
    segments: tuple[int, ...]
    planes: tuple[str, ...]

    def mask(self) -> np.ndarray:
        """Return where any segment is, uint8 (H, W) of 0 and 1. Raise a `DinomedError` for several planes."""
        self._check_planes()
        return np.asarray((self.frames > 0).any(axis=0), np.uint8)

    def label_map(self) -> np.ndarray:
        """Return the number of the segment at each pixel, int64 (H, W), 0 for none.

        Raises:
            DinomedError: the frames lie in several planes, or segments overlap.
        """
        self._check_planes()
        labels = np.zeros(self.frames.shape[1:], np.int64)
        for frame, segment in zip(self.frames, self.segments, strict=True):
            inside = frame > 0
            if (labels[inside] > 0).any():
                raise DinomedError("the segments overlap; a label map has one class at each pixel")
            labels[inside] = segment or frame[inside]
        return labels

    def _check_planes(self) -> None:
        count = len(set(self.planes))
        if count > 1:
            raise DinomedError(f"a segmentation of {count} planes; the mask of an image has one")


def read_segmentation(path: str | Path, max_pixels: int = MAX_PIXELS) -> Segmentation:
    """Read all frames of a binary segmentation or of a label map.

    Raises:
        UnreadableImage: the file is damaged, no segmentation, fractional, too large, or needs a codec.
    """
    from pydicom.pixels import pixel_array

    elements = read_elements(path, max_pixels, tags=("SegmentationType", "DimensionOrganizationType"))
    with reading_dicom(path, lambda error: decoding_reason(error, elements)) as file:
        if not is_segmentation(elements):
            raise DinomedError("a DICOM image; masks are read from DICOM segmentations (SEG) only")
        kind, count = str(elements.get("SegmentationType")), int(elements.get("NumberOfFrames") or 1)
        if kind not in ("BINARY", "LABELMAP"):
            raise DinomedError("a segmentation of another type than BINARY or LABELMAP")
        # a bit of the file becomes a byte
        decoded_bytes = pixel_bytes(elements, count) * (8 if elements.get("BitsAllocated") == 1 else 1)
        if count > _MAX_FRAMES or decoded_bytes > MAX_BYTES:
            raise DinomedError(f"{count} frames, {decoded_bytes / 1e9:.1f} GB of samples, over the limit of 2.1")
        segments, planes = _places(elements, count)
        if kind == "BINARY" and len(set(zip(segments, planes, strict=True))) < count:
            raise DinomedError("two frames of one segment and one plane; a mask has one")
        frames = np.asarray(pixel_array(bounded_dicom(file)))
    frames = frames[None] if frames.ndim == 2 else frames
    return Segmentation(frames, segments if kind == "BINARY" else (0,) * count, planes)


def _places(elements: Any, count: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the segment and the plane of each frame.

    Raises:
        DinomedError: the frames are tiles of an image, or are not described.
    """
    if str(elements.get("DimensionOrganizationType", "")).startswith("TILED"):
        raise DinomedError("a segmentation in tiles; the mask of an image has one frame for each segment")
    shared = (elements.get(FUNCTIONAL_GROUPS[0]) or [None])[0]
    groups = list(elements.get(FUNCTIONAL_GROUPS[1]) or [])
    if len(groups) != count and (groups or count > 1):
        raise DinomedError(f"{count} frames, of which {len(groups)} are described")
    segments, planes = [], []
    for group in groups or [None] * count:
        identification = frame_item(group, shared, "SegmentIdentificationSequence")
        segments.append(int(identification.ReferencedSegmentNumber) if identification is not None else 1)
        planes.append(_plane(group, shared))
    return tuple(segments), tuple(planes)


def _plane(group: Any, shared: Any) -> str:
    position = frame_item(group, shared, "PlanePositionSequence")
    if position is not None and "ImagePositionPatient" in position:
        return str([round(float(value), 3) for value in position.ImagePositionPatient])
    derivation = frame_item(group, shared, "DerivationImageSequence")
    images = (derivation.get("SourceImageSequence") or []) if derivation is not None else []
    return "; ".join(f"{image.ReferencedSOPInstanceUID} {image.get('ReferencedFrameNumber')}" for image in images)


def frame_item(group: Any, shared: Any, name: str) -> Any:
    """Return the first item of a sequence of a frame, or else of all frames; None if there is none."""
    for groups in (group, shared):
        items = groups.get(name) if groups is not None else None
        if items:
            return items[0]
    return None
