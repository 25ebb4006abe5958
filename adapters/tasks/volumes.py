"""Volumes of the predictions of a segmenter: the masks of slices, put together in the geometry of their volumes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.datasets.manifest import Manifest
from dinomed.datasets.tables import write_csv
from dinomed.errors import DinomedError, UsageError
from dinomed.images.labelmap import read_label_map
from dinomed.images.read import read_mask
from dinomed.log import logger
from dinomed.metrics.segmentation import VolumeOverlap, volume_overlap
from dinomed.progress import bar
from dinomed.volumes.geometry import slices_of
from dinomed.volumes.nifti import check_nibabel, write_nifti
from dinomed.volumes.records import VolumeRecord, read_record
from dinomed.volumes.write import slice_name

FOLDER, TABLE_FILE = "volumes", "volumes.csv"
_COLUMNS = ("volume", "file", "problem", "class", "voxels", "volume_ml", "dice", "hd95_mm")


@dataclass(frozen=True)
class _Slices:
    """A volume: its geometry, and the row of the manifest of each of its slices."""

    record: VolumeRecord
    rows: tuple[int, ...]


class VolumeMasks:
    """The masks of the volumes of a prediction, as NIfTI files in the geometry of the input.

    Args:
        manifest: the slices, all that `dinomed slices` wrote of each volume.
        schema: the classes, a `dinomed.adapters.tasks.segment.mask_schema.MaskSchema`.

    Raises:
        UsageError: the manifest is not one of slices, lacks slices of a volume, or nibabel is not installed.
    """

    def __init__(self, manifest: Manifest, schema: Any) -> None:
        check_nibabel()
        self.manifest, self.schema = manifest, schema
        self.axis = read_record(manifest.root).axis
        self.volumes = _find_slices(manifest)
        self.files = {name: f"{FOLDER}/{name}.nii.gz" for name in self.volumes}
        self.has_masks = all(manifest.has(column) for column in schema.columns)

    def write(self, out: Path, masks: Sequence[str], done: set[str]) -> None:
        """Write the volumes of which every slice has a prediction, and the table.

        Args:
            out: folder of the prediction.
            masks: file of each row of the manifest, relative to `out`.
            done: the images that have a prediction.
        """
        images = self.manifest.column("image")
        table: list[tuple[Any, ...]] = []
        with bar("volumes", len(self.volumes)) as progress:
            for name, slices in self.volumes.items():
                missing = [number for number, row in enumerate(slices.rows) if images[row] not in done]
                if missing:
                    reason = f"{len(missing)} of {len(slices.rows)} slices have no prediction (the first: {missing[0]})"
                    table.append((name, None, reason, *[None] * 5))
                    (out / self.files[name]).unlink(missing_ok=True)
                else:
                    table += self._write_volume(name, slices, out, masks)
                progress.advance()
        write_csv(out / TABLE_FILE, _COLUMNS, table)
        _log_means(table)

    def _write_volume(self, name: str, slices: _Slices, out: Path, masks: Sequence[str]) -> list[tuple[Any, ...]]:
        """Write a volume, and return its rows of the table, one for each reported class."""
        record = slices.record
        values = np.zeros(record.shape, np.uint16)
        for picture, row in zip(slices_of(values, record.grid, self.axis), slices.rows, strict=True):
            path = out / masks[row]
            picture[...] = read_mask(path) if len(self.schema.names) == 1 else read_label_map(path)
        (out / FOLDER).mkdir(exist_ok=True)
        written = values.astype(np.uint8) if values.max(initial=0) < 256 else values
        write_nifti(out / self.files[name], written, record.grid, record.header)
        targets, problem = None, None
        try:
            targets = self._read_targets(slices)
        except DinomedError as error:  # the predicted volume is written all the same
            problem = f"no metrics: {error}"
            logger.warning(f"volume {name}: {problem}")
        rows = []
        for k in self.schema.reported:
            predicted = self._class_mask(values, k)
            count = int(predicted.sum())
            overlap = None
            if targets is not None:
                overlap = volume_overlap(self._class_mask(targets, k), predicted, record.grid.spacing_mm)
            rows.append((name, self.files[name], problem, self.schema.names[k], count,
                         f"{count * record.grid.voxel_ml:.3f}", *_cells(overlap)))  # fmt: skip
        return rows

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
    if not {"volume", "slice"} <= set(manifest.columns):
        raise UsageError(f"`volumes=True`: {manifest.called} has no columns volume and slice; give the manifest.csv")
    rows: dict[str, dict[int, int]] = {}
    images = manifest.column("image")
    for row, (image, name, number) in enumerate(
        zip(images, manifest.column("volume"), manifest.column("slice"), strict=True)
    ):
        if name not in record.volumes or not str(number).isdecimal() or image != slice_name(name, int(number)):
            raise UsageError(f"`volumes=True`: {image} is no slice that `dinomed slices` wrote; give its manifest.csv")
        rows.setdefault(name, {})[int(number)] = row
    volumes = {}
    for name, places in rows.items():
        volume = record.volumes[name]
        count = volume.shape[volume.grid.picture_axes(record.axis)[0][0]]
        if sorted(places) != list(range(count)):
            raise UsageError(
                f"`volumes=True`: {manifest.called} has {len(places)} of the {count} slices of volume {name}; give all "
                "slices, or leave it out"
            )
        volumes[name] = _Slices(volume, tuple(places[number] for number in range(count)))
    return volumes


def _cells(overlap: VolumeOverlap | None) -> tuple[str | None, str | None]:
    """Return Dice and HD95 as cells; an undefined HD95 is empty."""
    if overlap is None:
        return None, None
    return f"{overlap.dice:.4f}", None if np.isnan(overlap.hd95_mm) else f"{overlap.hd95_mm:.3f}"


def _log_means(table: Sequence[tuple[Any, ...]]) -> None:
    """Log the means of Dice and HD95 over the volumes, for each class with reference masks."""
    for name in dict.fromkeys(row[3] for row in table if row[6] is not None):
        dice = [float(row[6]) for row in table if row[3] == name and row[6] is not None]
        distances = [float(row[7]) for row in table if row[3] == name and row[7] is not None]
        hd95 = f"{np.mean(distances):.2f} mm in {len(distances)} of them" if distances else "undefined"
        logger.info(f"{name}: mean Dice of {len(dice)} volumes {np.mean(dice):.4f}, mean HD95 {hd95}")
