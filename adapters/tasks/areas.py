"""Areas in mm² of masks of images whose files state the pixel spacing in the patient.

Nothing is guessed: an image without a spacing, a projection radiograph whose spacing holds at the detector or is an
estimate, and an image that is no DICOM have no area in mm². Frames of DICOM files have the spacing of their frame.
Slices of `dinomed slices` have the spacing of their volume.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.adapters.evaluated import ReportTable
from dinomed.adapters.tasks.volume_metrics import find_slices
from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError
from dinomed.html.words import format_interval
from dinomed.images.decode import UnreadableImage
from dinomed.images.dicom.spacing import FrameSpacings, read_frame_spacings
from dinomed.images.frames import image_file, parse_frame
from dinomed.metrics.bootstrap import RESAMPLES, bootstrap_mean
from dinomed.volumes.records import VOLUMES_FILE, SlicesRecord, read_record

AREA_COLUMN = "area_mm2"
_NOTE = (
    "Images whose files state the pixel spacing in the patient. The error is the mean difference of the areas of the "
    "predicted and the reference mask, without its sign."
)


class PixelAreas:
    """The area of a pixel of each image of a manifest, in mm².

    Args:
        manifest: the images.

    Attributes:
        is_possible: whether any image may have a spacing: a DICOM file, or a slice of a volume.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        formats = manifest.column("format") if manifest.has("format") else [None] * len(manifest)
        self._dicom = {row for row, name in enumerate(formats) if name == "DICOM"}
        self._areas: dict[int, float] = {}  # of slices
        self._newest: tuple[Path | None, FrameSpacings | None] = None, None  # the file that was read last
        if (manifest.root / VOLUMES_FILE).is_file():
            with suppress(DinomedError):  # the folder is not one of `dinomed slices`
                self._add_slices(read_record(manifest.root))
        self.is_possible = bool(self._dicom or self._areas)

    def _add_slices(self, record: SlicesRecord) -> None:
        for name, places in find_slices(self._manifest, record).items():
            self._areas |= dict.fromkeys(places.values(), record.volumes[name].grid.pixel_mm2(record.axis))

    def of(self, row: int, inside: np.ndarray | None = None) -> float | None:
        """Return the area of a pixel of an image in the patient; None if its file does not state it.

        Args:
            row: the image.
            inside: mask (H, W), which decides over ultrasound regions (`FrameSpacings.of`).
        """
        if row in self._areas or row not in self._dicom:
            return self._areas.get(row)
        path = self._manifest.path(row)
        file, frame = image_file(path), parse_frame(path)
        if self._newest[0] != file:
            self._newest = file, _read_spacings(file)
        return pixel_mm2(self._newest[1], 0 if frame is None else frame.number, inside)

    def compare(self, row: int, reference: np.ndarray, predicted: np.ndarray) -> tuple[float, float] | None:
        """Return the areas of two masks (H, W) of an image; None if no spacing is known that holds in both."""
        if not self.is_possible:
            return None
        area = self.of(row, reference.astype(bool) | predicted.astype(bool))
        return None if area is None else (np.count_nonzero(reference) * area, np.count_nonzero(predicted) * area)

    def cell(self, row: int, inside: np.ndarray) -> str | None:
        """Return the area of a mask (H, W) of an image as a cell of a table; None if it is not known."""
        area = self.of(row, inside)
        return None if area is None else f"{np.count_nonzero(inside) * area:.2f}"


def pixel_mm2(spacings: FrameSpacings | None, frame: int, inside: np.ndarray | None = None) -> float | None:
    """Return the area of a pixel of a frame in the patient, for a mask (H, W); None if it is not known."""
    spacing = None if spacings is None else spacings.of(frame, inside)
    return spacing.rows_mm * spacing.columns_mm if spacing is not None and spacing.in_patient else None


def _read_spacings(path: Path) -> FrameSpacings | None:
    try:
        return read_frame_spacings(path)
    except UnreadableImage:
        return None


def summarize_areas(
    areas: Mapping[str, Sequence[tuple[float, float] | None]], groups: Sequence[str], resamples: int = RESAMPLES
) -> dict[str, Any] | None:
    """Return the comparison of the areas in mm²; None if no image has a spacing.

    Args:
        areas: class to the area of the reference and of the predicted mask of each image, in mm²; None if not known.
        groups: group of each image, N; the intervals are by the cluster bootstrap over groups.
        resamples: number of bootstrap resamples.

    Returns:
        Class to `n` (images), `reference` and `predicted` (mean areas), and `error`, the mean absolute difference, with
        `low` and `high`.
    """
    summary = {}
    for name, values in areas.items():
        rows = [row for row, pair in enumerate(values) if pair is not None]
        if not rows:
            continue
        reference, predicted = np.array([values[row] for row in rows], float).T
        errors = np.abs(predicted - reference)
        (interval,) = bootstrap_mean(errors[:, None], [groups[row] for row in rows], resamples=resamples)
        summary[name] = {
            "n": len(rows), "reference": float(reference.mean()), "predicted": float(predicted.mean()),
            "error": float(errors.mean()), "low": interval.low, "high": interval.high,
        }  # fmt: skip
    return summary or None


def area_tables(report: Mapping[str, Any]) -> list[ReportTable]:
    """Return the table of areas of a report, if it has any."""
    if not report.get(AREA_COLUMN):
        return []
    rows = [
        (name, row["n"], row["reference"], row["predicted"], row["error"], format_interval(row["low"], row["high"]))
        for name, row in report[AREA_COLUMN].items()
    ]
    columns = ("", "images", "reference, mm²", "predicted, mm²", "error, mm²", "95% interval")
    return [ReportTable("Area in mm²", columns, rows, _NOTE)]
