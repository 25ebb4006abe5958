"""DICOM segmentations (SEG) of DICOM files of several frames, beside the mask videos of a segmenter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.errors import DinomedError, UsageError
from dinomed.images.decode import UnreadableImage
from dinomed.images.dicom.cine_segmentation import build_cine_segmentation
from dinomed.images.dicom.elements import is_dicom
from dinomed.images.dicom.patient import known_patients, read_patients
from dinomed.images.dicom.write_segmentation import (
    FramePlace,
    SegmentationSettings,
    build_frames_segmentation,
    check_highdicom,
    read_source,
    write_segmentation,
)
from dinomed.io.pseudonyms import key_check
from dinomed.volumes.series import have_distinct_positions, have_one_orientation, have_one_spacing, read_frame_places

SEG_FILE = "mask.seg.dcm"
_MAX_VOXELS = 2**29
"""Largest number of pixels of all frames and segments. While the file is written each takes about 1.5 bytes, and up to
5.5 in an enhanced image with several segments, which highdicom adds up in 64 bits."""


@dataclass(frozen=True)
class VideoSegOptions:
    """The segmentations that a user asks for.

    Attributes:
        numbers: number of each video in the prediction, from 1.
        patients: known patient of each video, with a key; None where there is none.
        keep_ids: copy the identifiers of the patient and the study.
        key: secret key of the pseudonym of the patient; None for a placeholder.
    """

    numbers: Mapping[Path, int]
    patients: Mapping[Path, str | None]
    keep_ids: bool = False
    key: bytes | None = field(default=None, repr=False)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide over the result, for the plan of the prediction."""
        return {"dicom_seg": True, "keep_ids": self.keep_ids, "id_key": key_check(self.key)}


def choose_seg_options(
    videos: Sequence[Path], keep_ids: bool, key: bytes | None, fps: float | None, step: int | None
) -> VideoSegOptions:
    """Return the options of the segmentations of videos.

    Raises:
        UsageError: a video is no DICOM file, not every frame is to be predicted, or highdicom is not installed.
    """
    check_highdicom()
    others = [path for path in videos if not is_dicom(path)]
    if others:
        raise UsageError(
            f"`dicom_seg=True` needs DICOM files, and {len(others)} of {len(videos)} videos are not (the first: "
            f"{others[0]}); predict them in a separate call without it"
        )
    if fps is not None or (step or 1) != 1:
        option = "step" if fps is None else "fps"
        raise UsageError(f"`dicom_seg=True` needs a prediction of every frame; leave `{option}` out")
    patients = [None] * len(videos) if key is None else known_patients(*read_patients(videos))
    numbers = {path: number for number, path in enumerate(videos, 1)}
    return VideoSegOptions(numbers, dict(zip(videos, patients, strict=True)), keep_ids, key)


class VideoSegmentation:
    """The segmentation of one file, with a segment for each class and a frame for each segment and frame of the file.

    Args:
        path: the file, one of `options`.
        names: class of each segment.
        model: hash of the weights of the segmenter.
        options: the numbers and the identifiers.

    Raises:
        UnreadableImage: the file cannot have a segmentation.
    """

    def __init__(self, path: Path, names: Sequence[str], model: str, options: VideoSegOptions) -> None:
        self._path, self._number = path, options.numbers[path]
        self._settings = SegmentationSettings(tuple(names), model, options.keep_ids, options.key)
        self._bits: list[np.ndarray] = []  # the segments of a frame, packed
        self._numbers: list[int] = []  # of these frames
        self._has_other_size = False  # a mask
        try:
            self._source = read_source(path, several_frames=True)
            self._frames = int(self._source.get("NumberOfFrames") or 1)
            self._size = int(self._source.get("Rows") or 0), int(self._source.get("Columns") or 0)
        except (DinomedError, TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, DinomedError) else "damaged or truncated DICOM"
            raise UnreadableImage(path, f"no DICOM segmentation: {reason}") from None
        voxels = self._frames * self._size[0] * self._size[1] * len(names)
        if voxels > _MAX_VOXELS:
            raise UnreadableImage(
                path,
                f"no DICOM segmentation: {voxels / 1e6:,.0f} million pixels in all frames and classes, over the limit "
                f"of {_MAX_VOXELS / 1e6:,.0f}; predict the file without a segmentation",
            )
        if options.patients[path] is not None:
            self._source.PatientID = options.patients[path]

    def add(self, number: int, masks: Sequence[np.ndarray]) -> None:
        """Add the next frame: its number, from 0, and the mask of each segment, bool (H, W)."""
        self._numbers.append(number)
        if any(mask.shape != self._size for mask in masks):
            self._has_other_size = True
        else:
            self._bits.append(np.packbits(np.stack(masks)))

    def write(self, path: Path, problem: str | None = None) -> None:
        """Write the segmentation, once: its masks are freed.

        Args:
            path: path of the file.
            problem: the reason why the video may have lost frames; None if it is whole.

        Raises:
            DinomedError: a frame has no prediction, the video may have lost frames, or the elements of the file do not
                fit. The message is a reason without the path.
        """
        if self._has_other_size:
            raise DinomedError("the mask has another size than its DICOM")
        if len(self._numbers) != self._frames:
            raise DinomedError(
                f"{len(self._numbers):,} of {self._frames:,} frames of the DICOM header have a prediction, and all are "
                "needed"
            )
        if self._numbers != list(range(self._frames)):
            raise DinomedError("the numbers of its frames are not those of the DICOM header")
        if problem is not None:
            raise DinomedError(f"frames may be missing before others, whose numbers would be wrong: {problem}")
        places, masks = self._places(), self._unpack()
        if places is None:
            segmentation = build_cine_segmentation(self._source, masks, self._settings, self._number)
        else:
            segmentation = build_frames_segmentation(self._source, places, masks, self._settings, self._number)
        write_segmentation(path, segmentation)

    def _unpack(self) -> np.ndarray:
        """Return the masks, uint8 (segments, frames, H, W), and free the packed ones."""
        masks = np.empty((len(self._settings.names), self._frames, *self._size), np.uint8)
        packed, self._bits = self._bits[::-1], []
        for number in range(self._frames):
            frame = masks[:, number]
            frame[:] = np.unpackbits(packed.pop(), count=frame.size).reshape(frame.shape)
        return masks

    def _places(self) -> list[FramePlace] | None:
        """Return the places of the frames in the patient; None if the file does not state them.

        Raises:
            DinomedError: frames have the same place, several orientations or spacings.
        """
        if not self._source.get("FrameOfReferenceUID"):
            return None
        try:
            places = [FramePlace(*map(tuple, place)) for place in read_frame_places(str(self._path))]
        except UnreadableImage:
            return None
        if not have_one_orientation([place.orientation for place in places]) or not have_one_spacing(
            [place.spacing for place in places]
        ):
            raise DinomedError("its frames have several orientations or spacings in the patient")
        if not have_distinct_positions([place.position for place in places]):
            raise DinomedError("several of its frames have one position in the patient, such as those of a time series")
        return places
