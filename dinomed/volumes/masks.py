"""Masks of volumes: label maps (NIfTI, MetaImage, NRRD) and DICOM segmentations, matched with their volumes.

They are aligned by geometry. Nothing is resampled: a mask whose voxels are not those of its volume is refused.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.datasets.scan.walk import list_files
from dinomed.errors import DinomedError, UsageError
from dinomed.images.decode import MAX_PIXELS, UnreadableImage
from dinomed.images.dicom.elements import is_dicom, is_segmentation, read_elements, reading_dicom
from dinomed.images.dicom.segmentation import read_segmentation
from dinomed.images.dicom.segments import SEGMENT_TAGS, Segment, SegmentClasses, describe_segments
from dinomed.isolation.pool import shared_pool
from dinomed.volumes.find import VolumeSource, file_stem
from dinomed.volumes.geometry import Grid, lps_to_ras, voxel_places
from dinomed.volumes.itk import is_volume_file
from dinomed.volumes.read import read_file_isolated
from dinomed.volumes.series import read_frame_places

_MISALIGNED = (
    "does not align with its volume (other voxels by shape, spacing, position or orientation), and is not resampled; "
    "resample it to the grid of the volume"
)
_FIRST_CHANNEL = "_0000"
"""Suffix of the images of nnU-Net, which their masks do not have."""


@dataclass
class MaskFiles:
    """Files of masks.

    Attributes:
        place: the path that the user passed.
        by_name: paths of the label maps by their name without suffix.
        by_series: paths of the DICOM segmentations by the Series Instance UID that they reference.
        problems: (path, reason) of files that cannot be used.
        used: the files that belong to a volume.
        segments: the descriptions of the segments of each DICOM segmentation.
        values: of each DICOM segmentation of a volume, Segment Number -> value in its label map (`match_segments`).
        classes: the classes of these values.
    """

    place: Path
    by_name: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    by_series: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    problems: list[tuple[str, str]] = field(default_factory=list)
    used: set[Path] = field(default_factory=set)
    segments: dict[Path, list[Segment]] = field(default_factory=dict)
    values: dict[Path, dict[int, int]] = field(default_factory=dict)
    classes: SegmentClasses = field(default_factory=SegmentClasses)

    def match_segments(self, sources: Sequence[VolumeSource]) -> None:
        """Give segments of one label one value in the segmentations of all volumes, in the order of their paths.

        A segmentation that contradicts an earlier one is a problem. Its volume gets no mask, also not of the other
        segmentations of its series: without the refused classes its mask would have background in their place.
        """
        series = {source.identifier("SeriesInstanceUID") for source in sources}
        for path, uid in sorted(
            (path, uid) for uid, paths in self.by_series.items() if uid in series for path in paths
        ):
            if path not in self.by_series[uid]:  # its series is refused
                continue
            try:
                self.values[path] = self.classes.add(path, self.segments[path])
            except DinomedError as error:
                self.problems.append((str(path), str(error)))
                self.problems += [
                    (str(other), "another segmentation of its series is refused")
                    for other in self.by_series[uid]
                    if other != path
                ]
                self.by_series[uid].clear()

    def find(self, source: VolumeSource, sources: Sequence[VolumeSource]) -> list[Path]:
        """Return the masks of a volume: none, one, or several DICOM segmentations without a common class.

        Args:
            sources: all volumes; if it is the only one, a mask that was given as one label map belongs to it.

        Raises:
            DinomedError: several files are masks of the volume, or a mask has the name of several volumes.
        """
        names = {name for name in _mask_names(source) if name in self.by_name}
        masks = {path for name in names for path in self.by_name[name]}
        masks |= set(self.by_series.get(source.identifier("SeriesInstanceUID") or "", []))
        if len(sources) == 1 and self.place.is_file() and is_volume_file(self.place):
            masks.add(self.place)
        self.used |= masks
        alike = [other for other in sources if not names.isdisjoint(_mask_names(other))] if names else []
        if len(alike) > 1:
            raise DinomedError(
                f"its mask ({', '.join(sorted(map(str, masks)))}) has the name of {len(alike)} volumes and may belong "
                "to another one; give the volumes of one folder at a time, with their masks"
            )
        if len(masks) > 1 and not self._are_different_classes(masks):
            raise DinomedError(f"{len(masks)} masks of one volume ({', '.join(sorted(map(str, masks)))}); give one")
        return sorted(masks)

    def _are_different_classes(self, masks: set[Path]) -> bool:
        """Return whether all masks are DICOM segmentations, and no class is in two of them."""
        values = [value for path in masks for value in set(self.values.get(path, {0: 0}).values())]
        return 0 not in values and len(values) == len(set(values))

    def unused(self) -> list[tuple[str, str]]:
        """Return the masks that belong to no volume, each with the reason."""
        unnamed = [
            (str(path), "a mask without a volume of its name") for paths in self.by_name.values() for path in paths
        ]
        series = [
            (str(path), "a DICOM segmentation of another series") for paths in self.by_series.values() for path in paths
        ]
        return [(path, reason) for path, reason in unnamed + series if Path(path) not in self.used]


def _mask_names(source: VolumeSource) -> set[str]:
    """Return the names that the mask of a volume may have."""
    return {source.name, source.name.removesuffix(_FIRST_CHANNEL)}


def without_masks(sources: Sequence[VolumeSource], masks: MaskFiles) -> list[VolumeSource]:
    """Return the volumes that are not masks themselves, for a folder of masks inside the folder of the volumes.

    Raises:
        UsageError: all are masks.
    """
    files = {path.resolve() for paths in masks.by_name.values() for path in paths}
    volumes = [source for source in sources if source.path.resolve() not in files]
    if sources and not volumes:
        raise UsageError(f"`masks={masks.place}` holds all the volumes; give a folder of masks only")
    return volumes


def find_masks(place: Path) -> MaskFiles:
    """Return the masks at a path: a label map (NIfTI, MetaImage, NRRD), a DICOM segmentation, or a folder of them.

    Raises:
        UsageError: the path does not exist or holds no mask.
    """
    if not place.exists():
        raise UsageError(f"`masks={place}` does not exist; give a label map, a DICOM segmentation or a folder of them")
    masks = MaskFiles(place)
    paths = [place]
    if place.is_dir():
        names, masks.problems = list_files(place)
        paths = [place / name for name in names]
    for path in paths:
        if is_volume_file(path):
            masks.by_name[file_stem(path)].append(path)
        elif is_dicom(path):
            _add_segmentation(path, masks)
    if not masks.by_name and not masks.by_series and not masks.problems:
        raise UsageError(f"`masks={place}` holds no label map (NIfTI, MetaImage, NRRD) and no DICOM segmentation")
    return masks


def _add_segmentation(path: Path, masks: MaskFiles) -> None:
    answer = shared_pool().run("dinomed.volumes.masks:read_referenced_series", [[str(path.absolute())]])[0]
    if isinstance(answer, UnreadableImage):
        if not answer.reason.startswith("DICOM without pixels"):  # such as a report
            masks.problems.append((str(path), answer.reason))
    elif answer[0] is not None:
        masks.by_series[answer[0]["series"]].append(path)
        masks.segments[path] = [Segment(*segment) for segment in answer[0]["segments"]]


def read_referenced_series(path: str) -> tuple[dict[str, Any] | None, None]:
    """Read the Series Instance UID that a DICOM segmentation references, and its segments; for the decoding process.

    Returns:
        `series`, the UID, and `segments` (`describe_segments`); None for a DICOM file that is no segmentation.

    Raises:
        UnreadableImage: the file is damaged, or a segmentation that references no series.
    """
    elements = read_elements(path, MAX_PIXELS, tags=("ReferencedSeriesSequence", *SEGMENT_TAGS))
    with reading_dicom(path):
        if not is_segmentation(elements):
            return None, None
        series = (elements.get("ReferencedSeriesSequence") or [None])[0]
        uid = series.get("SeriesInstanceUID") if series is not None else None
        if not uid:
            raise DinomedError("a DICOM segmentation that references no series; it belongs to no volume")
        return {"series": str(uid), "segments": describe_segments(elements)}, None


def read_segments(path: str) -> tuple[dict[str, Any], np.ndarray]:
    """Read the frames of a DICOM segmentation and their places; for the decoding process.

    Returns:
        `segments`, the number of the segment of each frame (0: the frame is a label map), `places` as of
        `read_frame_places`; and the frames, (frames, rows, columns).

    Raises:
        UnreadableImage: as `read_segmentation`, or a frame has no position.
    """
    segmentation = read_segmentation(path)
    return {"segments": list(segmentation.segments), "places": read_frame_places(path)}, segmentation.frames


def read_mask_volume(path: Path, grid: Grid, values: Mapping[int, int] | None = None) -> np.ndarray:
    """Return a mask in the voxels of its volume, uint16 of the shape of `grid`.

    Args:
        path: a label map or a DICOM segmentation.
        grid: geometry of the volume.
        values: of a segmentation, Segment Number -> value in the mask; None for the numbers themselves.

    Raises:
        UnreadableImage: the file is damaged or no label map, does not align with the volume, its segments overlap, or a
            segment is not described.
    """
    mask = np.zeros(grid.shape, np.uint16)
    if is_volume_file(path):
        facts, stored = read_file_isolated(VolumeSource(path, ""), is_mask=True)
        if stored.size != mask.size or not _put(mask, stored, grid, np.array(facts["affine"])):
            raise UnreadableImage(path, _MISALIGNED)
        return mask
    answer = shared_pool().run("dinomed.volumes.masks:read_segments", [[str(path.absolute())]])[0]
    if isinstance(answer, UnreadableImage):
        raise UnreadableImage(path, answer.reason)
    facts, frames = answer
    assert frames is not None
    for frame, segment, place in zip(frames, facts["segments"], facts["places"], strict=True):
        labels = (frame.T[..., None] > 0) * np.uint16(segment) if segment else frame.T[..., None].astype(np.uint16)
        if values is not None:
            numbers = [int(number) for number in np.unique(labels) if number > 0]
            if any(number not in values for number in numbers):
                raise UnreadableImage(path, "a segment is not described; its class is unknown")
            table = np.zeros(int(labels.max(initial=0)) + 1, np.uint16)
            table[numbers] = [values[number] for number in numbers]
            labels = table[labels]
        affine = _frame_affine(grid, *place)
        try:
            is_inside = affine is not None and _put(mask, labels, grid, affine)
        except DinomedError as error:
            raise UnreadableImage(path, str(error)) from None
        if not is_inside:
            raise UnreadableImage(path, _MISALIGNED)
    return mask


def _put(mask: np.ndarray, labels: np.ndarray, grid: Grid, affine: np.ndarray) -> bool:
    """Write the labels of another grid into a mask; return False if its voxels are not voxels of the mask.

    Raises:
        DinomedError: a voxel has another label already.
    """
    places = voxel_places(grid, labels.shape, affine)
    if places is None:
        return False
    order = [int(np.flatnonzero(row)[0]) for row in places[:, :3]]
    indices = [
        places[axis, 3] + places[axis, source] * np.arange(labels.shape[source]) for axis, source in enumerate(order)
    ]
    if any(index.min() < 0 or index.max() >= size for index, size in zip(indices, mask.shape, strict=True)):
        return False
    part = np.ix_(*indices)
    labels, before = labels.transpose(order), mask[part]
    if ((before > 0) & (labels > 0)).any():
        raise DinomedError("the segments overlap; a label map has one class at each voxel")
    mask[part] = np.maximum(before, labels)
    return True


def _frame_affine(
    grid: Grid, position: Sequence[float], orientation: Sequence[float], spacing: Sequence[float]
) -> np.ndarray | None:
    """Return the affine of a frame (column, row, 0), whose third axis is that of `grid` along which no row and no
    column lies; None if there is no such axis.
    """
    affine = np.eye(4)
    affine[:3] = np.stack(
        [np.array(orientation[:3]) * spacing[1], np.array(orientation[3:]) * spacing[0], np.zeros(3), position], axis=1
    )
    affine = lps_to_ras(affine)
    steps = np.rint(np.linalg.inv(grid.affine[:3, :3]) @ affine[:3, :2])
    across = np.flatnonzero(~steps.any(axis=1))
    if len(across) != 1:
        return None
    affine[:3, 2] = grid.affine[:3, across[0]]
    return affine
