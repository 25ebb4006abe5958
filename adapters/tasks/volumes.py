"""Volumes of the predictions of a segmenter: the masks of slices, put together in the geometry of their volumes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.adapters.tasks.volume_metrics import CaseValues, find_slices
from dinomed.adapters.tasks.volume_seg import SUFFIX, VolumeSegmentations
from dinomed.adapters.writer import VolumeSegOptions
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.tables import write_csv
from dinomed.errors import DinomedError, UsageError
from dinomed.html.words import format_interval, format_value
from dinomed.images.labelmap import read_label_map
from dinomed.images.read import read_mask
from dinomed.io.files import write_json
from dinomed.log import logger
from dinomed.metrics.segmentation import VolumeOverlap, volume_overlap
from dinomed.notice import RESEARCH_USE
from dinomed.progress import bar
from dinomed.volumes.geometry import slices_of
from dinomed.volumes.itk import write_volume, written_suffix
from dinomed.volumes.nifti import check_nibabel
from dinomed.volumes.records import VolumeRecord, read_record

FOLDER, TABLE_FILE, SUMMARY_FILE = "volumes", "volumes.csv", "volumes_summary.json"
_COLUMNS = ("volume", "file", "problem", "class", "voxels", "volume_ml", "dice", "hd95_mm")


@dataclass(frozen=True)
class _Slices:
    """A volume: its geometry, and the row of the manifest of each of its slices."""

    record: VolumeRecord
    rows: tuple[int, ...]


class VolumeMasks:
    """The masks of the volumes of a prediction, in the format and the geometry of the input (of DICOM series as NIfTI).

    Args:
        manifest: the slices, all that `dinomed slices` wrote of each volume.
        schema: the classes, a `dinomed.adapters.tasks.segment.mask_schema.MaskSchema`.
        seg: also write volumes of DICOM series as DICOM segmentations; None for the volumes only.
        model: hash of the weights of the segmenter.

    Raises:
        UsageError: the manifest is not one of slices, lacks slices of a volume, nibabel is not installed, or a volume
            cannot have a DICOM segmentation (`VolumeSegmentations`).
    """

    def __init__(self, manifest: Manifest, schema: Any, seg: VolumeSegOptions | None = None, model: str = "") -> None:
        self.manifest, self.schema = manifest, schema
        self.axis = read_record(manifest.root).axis
        self.volumes = _find_slices(manifest)
        suffixes = {name: written_suffix(slices.record.header) for name, slices in self.volumes.items()}
        if ".nii.gz" in suffixes.values():
            check_nibabel()
        self.files = {name: f"{FOLDER}/{name}{suffix}" for name, suffix in suffixes.items()}
        self._overlaps: dict[str, list[VolumeOverlap]] = {}
        self.segmentations: VolumeSegmentations | None = None
        if seg is not None:
            records = {name: slices.record for name, slices in self.volumes.items()}
            classes = tuple(schema.names[k] for k in schema.reported)
            self.segmentations = VolumeSegmentations(records, classes, model, seg)
        self.has_masks = all(manifest.has(column) for column in schema.columns)

    @property
    def written_files(self) -> list[str]:
        """The paths of all files of volumes, relative to the folder of the prediction."""
        names = () if self.segmentations is None else self.segmentations.sources
        return [*self.files.values(), *(f"{FOLDER}/{name}{SUFFIX}" for name in names)]

    def write(self, out: Path, masks: Sequence[str], done: set[str]) -> None:
        """Write the volumes of which every slice has a prediction, and the table.

        Args:
            out: folder of the prediction.
            masks: file of each row of the manifest, relative to `out`.
            done: the images that have a prediction.
        """
        images = self.manifest.column("image")
        table: list[tuple[Any, ...]] = []
        self._overlaps.clear()
        with bar("volumes", len(self.volumes)) as progress:
            for name, slices in self.volumes.items():
                missing = [number for number, row in enumerate(slices.rows) if images[row] not in done]
                if missing:
                    reason = f"{len(missing)} of {len(slices.rows)} slices have no prediction (the first: {missing[0]})"
                    table.append((name, None, reason, *[None] * 5, *self._seg_cells(None)))
                    (out / self.files[name]).unlink(missing_ok=True)
                    if self.segmentations is not None and name in self.segmentations.sources:
                        (out / f"{FOLDER}/{name}{SUFFIX}").unlink(missing_ok=True)
                else:
                    table += self._write_volume(name, slices, out, masks)
                progress.advance()
        write_csv(out / TABLE_FILE, [*_COLUMNS, *([] if self.segmentations is None else ["dicom_seg"])], table)
        (out / SUMMARY_FILE).unlink(missing_ok=True)
        if self._overlaps:
            self._write_summary(out)

    def _write_summary(self, out: Path) -> None:
        """Write the means of Dice and HD95 over the volumes with their intervals over groups, and log them."""
        units = self.manifest.units()
        groups = [units[self.volumes[name].rows[0]] for name in self._overlaps]
        pairs = list(self._overlaps.values())
        values = {
            self.schema.names[k]: np.array([(volume[place].dice, volume[place].hd95_mm) for volume in pairs])
            for place, k in enumerate(self.schema.reported)
        }
        summary = CaseValues("volume", groups, values).summarize()
        write_json(out / SUMMARY_FILE, {"purpose": RESEARCH_USE, **summary})
        for name, metrics in summary["metrics"].items():
            dice, hd95 = (
                f"{format_value(row['value'])} ({format_interval(row['low'], row['high'])}, {row['n']} volumes)"
                for row in metrics.values()
            )
            logger.info(
                f"{name}: mean Dice {dice}, mean HD95 in mm {hd95}; 95% intervals over {summary['groups']} groups"
            )

    def _write_volume(self, name: str, slices: _Slices, out: Path, masks: Sequence[str]) -> list[tuple[Any, ...]]:
        """Write a volume, and return its rows of the table, one for each reported class."""
        record = slices.record
        values = np.zeros(record.shape, np.uint16)
        for picture, row in zip(slices_of(values, record.grid, self.axis), slices.rows, strict=True):
            path = out / masks[row]
            picture[...] = read_mask(path) if len(self.schema.names) == 1 else read_label_map(path)
        (out / FOLDER).mkdir(exist_ok=True)
        written = values.astype(np.uint8) if values.max(initial=0) < 256 else values
        write_volume(out / self.files[name], written, record.grid, record.header)
        targets = None
        file, problem = self._write_segmentation(name, values, out)
        try:
            targets = self._read_targets(slices)
        except DinomedError as error:  # the predicted volume is written all the same
            reason = f"no metrics: {error}"
            logger.warning(f"volume {name}: {reason}")
            problem = "; ".join(part for part in (problem, reason) if part is not None)
        rows = []
        for k in self.schema.reported:
            predicted = self._class_mask(values, k)
            count = int(predicted.sum())
            overlap = None
            if targets is not None:
                overlap = volume_overlap(self._class_mask(targets, k), predicted, record.grid.spacing_mm)
                self._overlaps.setdefault(name, []).append(overlap)
            rows.append((name, self.files[name], problem, self.schema.names[k], count,
                         f"{count * record.grid.voxel_ml:.3f}", *_cells(overlap), *self._seg_cells(file)))  # fmt: skip
        return rows

    def _write_segmentation(self, name: str, values: np.ndarray, out: Path) -> tuple[str | None, str | None]:
        """Write a volume of a DICOM series as a DICOM segmentation, if that is asked for.

        Returns:
            Its file, and the problem if it cannot be written; each None without.
        """
        if self.segmentations is None or name not in self.segmentations.sources:
            return None, None
        file = f"{FOLDER}/{name}{SUFFIX}"
        planes = np.stack([self._class_mask(values, k) for k in self.schema.reported])
        try:
            self.segmentations.write(out / file, name, planes)
        except DinomedError as error:  # the volume is written all the same
            (out / file).unlink(missing_ok=True)
            reason = f"no DICOM segmentation: {error}"
            logger.warning(f"volume {name}: {reason}")
            return None, reason
        return file, None

    def _seg_cells(self, value: str | None) -> tuple[str | None, ...]:
        """Return the cells of the column of DICOM segmentations: one, or none without them."""
        return () if self.segmentations is None else (value,)

    def _class_mask(self, values: np.ndarray, k: int) -> np.ndarray:
        """Return where a class is in the values of a written volume, bool."""
        if len(self.schema.names) == 1:
            return values > 0
        value = self.schema.written_values[k]
        return values == value if self.schema.exclusive else (values & value) > 0

    def _read_targets(self, slices: _Slices) -> np.ndarray | None:
        """Return the reference masks of a volume with the values of a written one, uint16 (I, J, K); None if a slice
        has none."""
        if not self.has_masks:
            return None
        columns = [self.manifest.column(column) for column in self.schema.columns]
        if any(column[row] is None for column in columns for row in slices.rows):
            return None
        targets = np.zeros(slices.record.shape, np.uint16)
        for picture, row in zip(slices_of(targets, slices.record.grid, self.axis), slices.rows, strict=True):
            read = self.schema.read(self.manifest, row)
            picture[...] = read[0] if len(self.schema.names) == 1 else self.schema.encode(read)
        return targets


def _find_slices(manifest: Manifest) -> dict[str, _Slices]:
    """Return the volumes of a manifest.

    Raises:
        UsageError: a row is not a slice of a volume of `volumes.json`, or slices of a volume are missing.
    """
    record = read_record(manifest.root)
    rows = find_slices(manifest, record)
    known = {row for places in rows.values() for row in places.values()}
    for row, image in enumerate(manifest.column("image")):
        if row not in known:
            raise UsageError(f"`volumes=True`: {image} is no slice that `dinomed slices` wrote; give its manifest.csv")
    volumes = {}
    for name, places in rows.items():
        count = record.count_slices(name)
        if sorted(places) != list(range(count)):
            raise UsageError(
                f"`volumes=True`: {manifest.called} has {len(places)} of the {count} slices of volume {name}; give all "
                "slices, or leave it out"
            )
        volumes[name] = _Slices(record.volumes[name], tuple(places[number] for number in range(count)))
    return volumes


def _cells(overlap: VolumeOverlap | None) -> tuple[str | None, str | None]:
    """Return Dice and HD95 as cells; an undefined HD95 is empty."""
    if overlap is None:
        return None, None
    return f"{overlap.dice:.4f}", None if np.isnan(overlap.hd95_mm) else f"{overlap.hd95_mm:.3f}"
