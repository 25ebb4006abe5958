"""Areas in mm² of masks of images whose files state the pixel spacing in the patient.

Nothing is guessed: an image without a spacing, a projection radiograph whose spacing holds at the detector or is an
estimate, and an image that is no DICOM have no area in mm². Slices of `dinomed slices` have the spacing of their
volume.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from dinomed.adapters.evaluated import ReportTable
from dinomed.adapters.tasks.volume_metrics import find_slices
from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError
from dinomed.html.words import format_interval
from dinomed.images.decode import UnreadableImage
from dinomed.images.dicom.spacing import read_pixel_spacing
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
        self._areas: dict[int, float | None] = {}
        if (manifest.root / VOLUMES_FILE).is_file():
            with suppress(DinomedError):  # the folder is not one of `dinomed slices`
                self._add_slices(read_record(manifest.root))
        self.is_possible = bool(self._dicom or self._areas)

    def _add_slices(self, record: SlicesRecord) -> None:
        for name, places in find_slices(self._manifest, record).items():
            self._areas |= dict.fromkeys(places.values(), record.volumes[name].grid.pixel_mm2(record.axis))

    def of(self, row: int) -> float | None:
        """Return the area of a pixel of an image in the patient; None if its file does not state it."""
        if row not in self._areas:
            self._areas[row] = self._read(row) if row in self._dicom else None
        return self._areas[row]

    def _read(self, row: int) -> float | None:
        try:
            spacing = read_pixel_spacing(self._manifest.path(row))
        except UnreadableImage:
            return None
        return spacing.rows_mm * spacing.columns_mm if spacing is not None and spacing.in_patient else None

    def cell(self, row: int, pixels: int) -> str | None:
        """Return the area of so many pixels of an image as a cell of a table; None if it is not known."""
        area = self.of(row)
        return None if area is None else f"{pixels * area:.2f}"


def summarize_areas(
    areas: PixelAreas,
    pixels: Mapping[str, Sequence[tuple[int, int]]],
    groups: Sequence[str],
    resamples: int = RESAMPLES,
) -> dict[str, Any] | None:
    """Return the comparison of the areas in mm²; None if no image has a spacing.

    Args:
        areas: of the N images.
        pixels: class to the area of the reference and of the predicted mask of each image, in pixels.
        groups: group of each image, N; the intervals are by the cluster bootstrap over groups.
        resamples: number of bootstrap resamples.

    Returns:
        Class to `n` (images), `reference` and `predicted` (mean areas), and `error`, the mean absolute difference, with
        `low` and `high`.
    """
    rows = [row for row in range(len(groups)) if areas.of(row) is not None]
    if not rows:
        return None
    scale, summary = np.array([areas.of(row) for row in rows], float)[:, None], {}
    for name, values in pixels.items():
        reference, predicted = (np.array(values, float)[rows] * scale).T
        errors = np.abs(predicted - reference)
        (interval,) = bootstrap_mean(errors[:, None], [groups[row] for row in rows], resamples=resamples)
        summary[name] = {
            "n": len(rows), "reference": float(reference.mean()), "predicted": float(predicted.mean()),
            "error": float(errors.mean()), "low": interval.low, "high": interval.high,
        }  # fmt: skip
    return summary


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
