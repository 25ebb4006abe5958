"""DICOM segmentations (SEG) of the volumes of a prediction, beside their NIfTI files.

A folder of slices holds no identifier of its DICOM series. So the series are given again, and a volume belongs to the
series with its geometry and its values.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.adapters.writer import VolumeSegOptions
from dinomed.errors import DinomedError, UsageError
from dinomed.images.dicom.patient import PATIENT, STUDY, known_patients
from dinomed.images.dicom.write_segmentation import (
    FramePlace,
    SegmentationSettings,
    build_frames_segmentation,
    build_volume_segmentation,
    check_highdicom,
    read_source,
    write_segmentation,
)
from dinomed.volumes.find import VolumeSource, find_volumes
from dinomed.volumes.read import read_volume
from dinomed.volumes.records import VolumeRecord, digest_of

SUFFIX = ".seg.dcm"


class VolumeSegmentations:
    """The DICOM segmentations of volumes, each with a segment for each class and a frame for each slice.

    Args:
        records: name of each volume to its geometry. Those of NIfTI files have no segmentation.
        names: class of each segment.
        model: hash of the weights of the segmenter.
        options: the series, and the identifiers.

    Attributes:
        sources: name of each volume of a DICOM series to the series.

    Raises:
        UsageError: no volume is of a DICOM series, a volume has no series or several equal ones, or highdicom is not
            installed.
    """

    def __init__(
        self, records: Mapping[str, VolumeRecord], names: tuple[str, ...], model: str, options: VolumeSegOptions
    ) -> None:
        check_highdicom()
        self._settings = SegmentationSettings(names, model, options.keep_ids, options.key)
        self.sources = _match(records, options.series)
        ids = [[source.identifier(name) for source in self.sources.values()] for name in (PATIENT, STUDY)]
        self._patients = dict(zip(self.sources, known_patients(*ids), strict=True))

    def write(self, path: Path, name: str, masks: np.ndarray) -> None:
        """Write the segmentation of a volume.

        Args:
            path: file.
            name: name of the volume, one of `sources`.
            masks: (segments, I, J, K) of 0 and 1, in the voxels of the volume.

        Raises:
            DinomedError: a file of the series cannot have a segmentation. The message is a reason without the path.
        """
        number, frames = list(self.sources).index(name) + 1, self.sources[name].frames
        planes = masks.transpose(0, 3, 2, 1).astype(np.uint8)
        if len({frame.path for frame in frames}) == 1:
            order = np.argsort([frame.number for frame in frames])
            places = [
                FramePlace(frame.position, frame.orientation, frame.spacing) for frame in (frames[k] for k in order)
            ]
            header = self._read(frames[0].path, name, several_frames=True)
            segmentation = build_frames_segmentation(header, places, planes[:, order], self._settings, number)
        else:
            headers = [self._read(frame.path, name) for frame in frames]
            segmentation = build_volume_segmentation(headers, planes, self._settings, number)
        write_segmentation(path, segmentation)

    def _read(self, path: str, name: str, *, several_frames: bool = False) -> Any:
        """Return the elements of a file of a volume, with the Patient ID that is known by another file of its study."""
        header = read_source(path, several_frames=several_frames)
        if self._settings.key is not None and self._patients[name] is not None:
            header.PatientID = self._patients[name]
        return header


def _match(records: Mapping[str, VolumeRecord], place: Path) -> dict[str, VolumeSource]:
    """Return the series of each volume that is no NIfTI file, by geometry and values.

    Raises:
        UsageError: there is no such volume, or one has no series or several equal ones.
    """
    wanted = {name: record for name, record in records.items() if record.header is None}
    if not wanted:
        raise UsageError("`dicom_seg=True`: none of the volumes is of a DICOM series; leave it out")
    if any(record.values_sha256 is None for record in wanted.values()):
        raise UsageError(
            "`dicom_seg=True`: the slices were written by an earlier version, without the checksums of the volumes; "
            "write them again by `dinomed slices`"
        )
    with _naming(place):
        candidates = [source for source in find_volumes([place]).sources if source.grid is not None]
    digests: dict[Path, str] = {}
    matched: dict[str, VolumeSource] = {}
    for name, record in wanted.items():
        equal: list[VolumeSource] = []
        for source in candidates:
            assert source.grid is not None
            if source.grid.shape != record.shape or not np.array_equal(source.grid.affine, record.grid.affine):
                continue
            if source.path not in digests:
                digests[source.path] = digest_of(read_volume(source).values)
            if digests[source.path] == record.values_sha256:
                equal.append(source)
        if len(equal) > 1:  # such as a copy without identifiers: the UIDs and the patient would be a guess
            raise UsageError(
                f"`series={place}` holds {len(equal)} DICOM series with the geometry and the values of volume {name} "
                f"({', '.join(str(source.path) for source in equal)}); give a folder with one of them only"
            )
        if not equal:
            raise UsageError(
                f"`series={place}` holds no DICOM series with the geometry and the values of volume {name}; give the "
                "series of which `dinomed slices` wrote the slices"
            )
        matched[name] = equal[0]
    return matched


@contextmanager
def _naming(place: Path) -> Iterator[None]:
    """Name the argument in the errors of a search for volumes."""
    try:
        yield
    except DinomedError as error:
        raise UsageError(f"`series={place}`: {error}") from None
