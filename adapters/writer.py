"""The base class of prediction writers: table rows, and for dense tasks a file for each image."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError

Row = list[Any]


@dataclass(frozen=True)
class SheetEntry:
    """What a contact sheet shows of the prediction for an image.

    Attributes:
        text: the result in a few words.
        uncertainty: 0 to 1, by which images are sorted.
        area: share of the image that is outlined, 0 to 1; None for a task without masks.
        read_mask: reads the outlined pixels, bool (H, W), from the written file.
    """

    text: str
    uncertainty: float
    area: float | None = None
    read_mask: Callable[[], np.ndarray] | None = None


@dataclass(frozen=True)
class VolumeSegOptions:
    """What a user asks of the segmentations of volumes.

    Attributes:
        series: the DICOM series of the slices: a folder, or a file.
        keep_ids: copy the identifiers of the patient and the study.
        key: secret key of the pseudonym of the patient; None for a placeholder.
    """

    series: Path
    keep_ids: bool = False
    key: bytes | None = field(default=None, repr=False)


class PredictionWriter(ABC):
    """Writes the predictions of a collection into a folder.

    Args:
        names: relative paths of the images.
        columns: columns of the table after the image's path.
        files: relative path of the file of each image; empty where only rows are written.
        extra_files: further files, which `write_extra_files` or `write_batch` writes.
        settings: settings that decide over the result, for the plan of the prediction.
    """

    def __init__(
        self,
        names: Sequence[str],
        columns: Sequence[str],
        files: Sequence[str] = (),
        extra_files: Sequence[str] = (),
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.names, self.columns, self.files, self.extra_files = names, columns, files, extra_files
        self.settings = settings or {}

    @property
    def has_sheet(self) -> bool:
        """Whether a contact sheet shows the predictions of this task."""
        return type(self).sheet_entry is not PredictionWriter.sheet_entry

    def write_extra_files(self, out: Path) -> None:  # noqa: B027 (most tasks write none)
        """Write the files of `extra_files`."""

    def sheet_entry(self, row: Row, out: Path) -> SheetEntry | None:
        """Return what the contact sheet shows of an image; None for a task without a sheet.

        Args:
            row: a row of the table, which begins with the cells of `write_batch`.
            out: output folder.
        """
        return None

    def add_coco(self, manifest: Manifest, ids: Path | None) -> None:
        """Write the predictions as COCO results too, with the ids of the COCO file `ids` or new ones."""
        raise UsageError("`coco=True` is for segmenters, since others predict no masks; leave it out")

    def add_dicom_seg(self, manifest: Manifest, keep_ids: bool, key: bytes | None = None) -> None:
        """Write the predictions as DICOM segmentations too, with the identifiers of the images if `keep_ids`, or with a
        pseudonym of the patient by `key`."""
        raise UsageError("`dicom_seg=True` is for segmenters, since others predict no masks; leave it out")

    def add_areas(self, manifest: Manifest) -> None:  # noqa: B027 (most tasks predict no masks)
        """Write areas in mm² too, if files of the images may state the pixel spacing."""

    def add_volumes(self, manifest: Manifest, seg: VolumeSegOptions | None = None) -> None:
        """Write the masks of slices as volumes too, and with `seg` as DICOM segmentations."""
        raise UsageError("`volumes=True` is for segmenters, since others predict no masks; leave it out")

    def finish(self, out: Path, names: Sequence[str]) -> None:  # noqa: B027 (most tasks write none)
        """Write the files that need the predictions of all images, which have the relative paths `names`."""

    @abstractmethod
    def write_batch(
        self, indices: Sequence[int], pixels: Tensor, sizes: Sequence[tuple[int, int]], out: Path
    ) -> list[Row]:
        """Write the files of a batch, then return its rows.

        Args:
            indices: places of the images in `names`.
            pixels: the images as `Predictor.preprocessing` prepares them.
            sizes: height and width of each image, px.
            out: output folder.
        """
