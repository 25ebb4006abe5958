"""Dice and HD95 by volume and by video, with intervals over patients.

A volume is compared as a whole, in mm. The values of a video are means over its frames, HD95 in px, so that a video
counts once however many frames it has. Intervals are those of `dinomed.metrics.bootstrap`, over the groups of the
volumes or videos.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinomed.adapters.evaluated import ReportTable
from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.html.words import format_interval
from dinomed.log import logger
from dinomed.metrics.bootstrap import RESAMPLES, bootstrap_mean
from dinomed.volumes.records import VOLUMES_FILE, SlicesRecord, read_record, slice_name

DICE = "dice"
_HD95 = {"volume": "hd95_mm", "video": "hd95_px"}
_TITLES = {DICE: "Dice", "hd95_mm": "HD95, mm", "hd95_px": "HD95, px"}
_NOTES = {
    "volume": "A volume is compared as a whole.",
    "video": "The values of a video are means over its frames.",
}
_SLICE = re.compile(r"([^/]+)/([0-9]{5,18})\.png")


@dataclass(frozen=True)
class CaseValues:
    """Dice and HD95 of N volumes or videos.

    Attributes:
        kind: `volume` or `video`.
        groups: group (patient) of each of them, or its own name.
        values: class -> float (N, 2): Dice, and HD95 in mm of a volume, in px of a video; nan where undefined.
        incomplete: number of volumes of which slices are missing.
    """

    kind: str
    groups: list[str]
    values: dict[str, np.ndarray]
    incomplete: int = 0

    def summarize(self, resamples: int = RESAMPLES) -> dict[str, Any]:
        """Return `n`, `groups`, `incomplete` (of volumes), and `metrics`: class -> metric -> `value` (the mean), `low`,
        `high`, `undefined` (resamples) and `n` (volumes or videos for which it is defined)."""
        table = np.concatenate(list(self.values.values()), axis=1)
        intervals = iter(zip(table.T, bootstrap_mean(table, self.groups, resamples=resamples), strict=True))
        metrics: dict[str, dict[str, Any]] = {}
        for name in self.values:
            metrics[name] = {}
            for metric in (DICE, _HD95[self.kind]):
                column, interval = next(intervals)
                defined = column[~np.isnan(column)]
                metrics[name][metric] = {
                    "value": float(defined.mean()) if len(defined) else float("nan"),
                    "low": interval.low,
                    "high": interval.high,
                    "undefined": interval.undefined,
                    "n": len(defined),
                }
        counts = {"incomplete": self.incomplete} if self.kind == "volume" else {}
        return {"n": len(self.groups), "groups": len(set(self.groups)), **counts, "metrics": metrics}


def case_tables(report: Mapping[str, Any]) -> list[ReportTable]:
    """Return a table of `by_volume` and one of `by_video`, where a report has them."""
    tables = []
    for kind in _HD95:
        if (part := report.get(f"by_{kind}")) is None:
            continue
        rows = [
            (name if metric == DICE else "", _TITLES[metric], row["value"],
             format_interval(row["low"], row["high"]), row["n"])
            for name, metrics in part["metrics"].items()
            for metric, row in metrics.items()
        ]  # fmt: skip
        note = f"{_NOTES[kind]} {part['n']} {kind}s of {part['groups']} groups, over which the intervals are computed."
        if part.get("incomplete"):
            note += f" Slices of {part['incomplete']} volumes are missing, and count as empty in both masks."
        columns = ("", "metric", "mean", "95% interval", f"{kind}s")
        tables.append(ReportTable(f"Dice and HD95 by {kind}", columns, rows, note))
    return tables


def find_slices(manifest: Manifest, record: SlicesRecord) -> dict[str, dict[int, int]]:
    """Return volume -> number of the slice -> row, of those images that are slices of a volume of the record.

    Raises:
        UsageError: an image has another name than `dinomed slices` gives, or its number is above those of its volume.
    """
    places: dict[str, dict[int, int]] = {}
    count_slices = functools.cache(record.count_slices)
    for row, image in enumerate(manifest.column("image")):
        match = _SLICE.fullmatch(image)
        if match is None or match[1] not in record.volumes:
            continue
        number = int(match[2])
        if number >= count_slices(match[1]) or image != slice_name(match[1], number):
            raise UsageError(f"{image} is no slice that `dinomed slices` wrote; give its manifest.csv")
        places.setdefault(match[1], {})[number] = row
    return places


def read_slices_record(manifest: Manifest) -> SlicesRecord | None:
    """Return the geometry of the volumes whose slices a manifest has; None if it has no slices."""
    if not (manifest.root / VOLUMES_FILE).is_file():
        return None
    try:
        return read_record(manifest.root)
    except DinomedError as error:
        logger.warning(f"no metrics by volume: {error}")
        return None


class VolumeComparison:
    """The comparison of volumes while their slices are predicted one by one; masks are kept until a volume is complete.

    Args:
        manifest: slices of `dinomed slices` with masks; of other images nothing is compared.
        classes: names of the compared classes.
    """

    def __init__(self, manifest: Manifest, classes: Sequence[str]) -> None:
        self.classes, record = list(classes), read_slices_record(manifest)
        self._volume_of: dict[int, str] = {}
        self._rows: dict[str, list[int]] = {}
        self._masks: dict[int, np.ndarray] = {}  # of a row: (2, classes, H, W / 8), packed bits
        self._values: list[list[list[float]]] = []
        self._groups: list[str] = []
        self._units = manifest.units()
        self._incomplete = 0
        if record is None:
            return
        sizes = list(zip(manifest.column("height"), manifest.column("width"), strict=True))
        self._spacing, self._numbers, self._counts, self._widths = {}, {}, {}, {}
        for name, places in find_slices(manifest, record).items():
            grid = record.volumes[name].grid
            count, *size = (grid.shape[axis] for axis, _ in grid.picture_axes(record.axis))
            if any(sizes[row] != tuple(size) for row in places.values()):
                logger.warning(f"volume {name} has no metrics: its slices have another size than {VOLUMES_FILE} says")
                continue
            self._numbers[name] = sorted(places)
            self._rows[name] = [places[number] for number in self._numbers[name]]
            self._counts[name], self._widths[name] = count, size[1]
            self._spacing[name] = grid.picture_spacing_mm(record.axis)
            self._volume_of |= dict.fromkeys(self._rows[name], name)

    def add(self, row: int, targets: np.ndarray, predicted: np.ndarray) -> None:
        """Add a slice.

        Args:
            row: its row in the manifest.
            targets: its reference masks, (classes, H, W) of 0 and 1.
            predicted: its predicted masks, likewise.
        """
        if (name := self._volume_of.get(row)) is None:
            return
        self._masks[row] = np.packbits(np.stack([targets, predicted]).astype(bool), axis=-1)
        if all(number in self._masks for number in self._rows[name]):
            self._compare(name)

    def _compare(self, name: str) -> None:
        """Compare a volume of which all slices are there, and forget its masks."""
        from dinomed.metrics.segmentation import volume_overlap  # imports MONAI, which takes seconds

        masks = [self._masks.pop(row) for row in self._rows[name]]
        numbers = self._numbers[name]
        self._incomplete += len(numbers) < self._counts[name]
        has_gap = numbers[-1] - numbers[0] + 1 > len(numbers)  # a gap has surfaces that the volume has not
        overlaps = []
        for k in range(len(self.classes)):  # one at a time, because unpacked masks of all classes fill the memory
            packed = np.stack([mask[:, k] for mask in masks], axis=1)
            target, predicted = np.unpackbits(packed, axis=-1, count=self._widths[name])
            overlaps.append(volume_overlap(target, predicted, self._spacing[name]))
        self._values.append([[pair.dice, np.nan if has_gap else pair.hd95_mm] for pair in overlaps])
        self._groups.append(self._units[self._rows[name][0]])

    def result(self) -> CaseValues | None:
        """Return the values of all volumes; None if there is none."""
        if not self._values:
            return None
        table = np.array(self._values, float)  # (volumes, classes, 2)
        values = {name: table[:, k] for k, name in enumerate(self.classes)}
        return CaseValues("volume", self._groups, values, self._incomplete)


def video_values(manifest: Manifest, values: Mapping[str, np.ndarray]) -> CaseValues | None:
    """Return the means over the frames of each video; None if the rows are not frames of videos.

    Args:
        manifest: N images.
        values: class -> float (N, 2), Dice and HD95 of each image, nan where undefined.
    """
    if not manifest.has("video"):
        return None
    rows: dict[str, list[int]] = {}
    for row, video in enumerate(manifest.column("video")):
        if video is not None:
            rows.setdefault(video, []).append(row)
    units = manifest.units()
    means = {name: np.array([_means(table[of]) for of in rows.values()]) for name, table in values.items()}
    return CaseValues("video", [units[of[0]] for of in rows.values()], means) if rows else None


def _means(table: np.ndarray) -> list[float]:
    """Return the mean of each column (N, M) without its nan, or nan."""
    columns = [column[~np.isnan(column)] for column in table.T]
    return [float(column.mean()) if len(column) else float("nan") for column in columns]
