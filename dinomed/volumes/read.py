"""Reading of a volume, its file or files decoded in processes with limits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinomed.images.decode import UnreadableImage
from dinomed.isolation.pool import shared_pool
from dinomed.log import logger
from dinomed.volumes.find import VolumeSource
from dinomed.volumes.geometry import Grid
from dinomed.volumes.itk import is_itk

_BATCH = 16


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume.

    Attributes:
        values: float32 (I, J, K) in modality units, Hounsfield units for CT; of a NIfTI file by its slope. NaN is
            padding. Of a DICOM series, i is the column, j the row and k the slice.
        grid: shape and affine to RAS+ coordinates in mm (`dinomed.volumes.geometry`).
        header: of a NIfTI file, the fields of its header that hold the geometry; of MetaImage and NRRD the name of the
            format; None for a DICOM series.
    """

    values: np.ndarray
    grid: Grid
    header: dict[str, Any] | None = None


def read_volume(source: VolumeSource, advance: Callable[[int], None] = lambda count: None) -> Volume:
    """Read a volume.

    Args:
        source: the volume, as `find_volumes` found it.
        advance: called with the number of slices of a series that were read.

    Raises:
        UnreadableImage: a file is damaged, truncated, too large or cannot be decoded, or a file has no geometry or
            another number of dimensions than three.
    """
    if source.grid is None:
        facts, values = read_file_isolated(source)
        return Volume(values, Grid(_shape(values), np.array(facts["affine"])), facts["header"])
    if source.note is not None:
        logger.warning(f"{source.path}: {source.note}")
    values = np.empty(source.grid.shape[::-1], np.float32).T  # each slice in one piece
    for start in range(0, len(source.frames), _BATCH):
        batch = source.frames[start : start + _BATCH]
        calls = [[frame.path, frame.number] for frame in batch]
        answers = shared_pool().run("dinomed.volumes.series:read_frame", calls)
        for place, (frame, answer) in enumerate(zip(batch, answers, strict=True), start):
            if isinstance(answer, UnreadableImage):
                raise answer
            pixels = answer[1]
            if pixels is None or pixels.shape != frame.size:
                raise UnreadableImage(frame.path, "its pixels have another size than its header")
            values[:, :, place] = pixels.T
        advance(len(batch))
    return Volume(values, source.grid)


def read_file_isolated(source: VolumeSource, is_mask: bool = False) -> tuple[dict[str, Any], np.ndarray]:
    """Return the facts and the values (I, J, K) of a file as of `read_nifti` or `read_itk`, from a decoding process."""
    target = "dinomed.volumes.itk:read_itk" if is_itk(source.path) else "dinomed.volumes.nifti:read_nifti"
    answer = shared_pool().run(target, [[str(source.path.absolute()), is_mask]])[0]
    if isinstance(answer, UnreadableImage):
        raise UnreadableImage(source.path, answer.reason)
    facts, values = answer
    assert values is not None
    if facts["note"] is not None:
        logger.warning(f"{source.path}: {facts['note']}")
    return facts, values.T


def _shape(values: np.ndarray) -> tuple[int, int, int]:
    first, second, third = values.shape
    return first, second, third
