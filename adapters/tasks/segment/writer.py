"""Written predictions of segmenters: a mask or a label map for each image, and rows of areas."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dinomed.adapters.tasks.areas import AREA_COLUMN, PixelAreas
from dinomed.adapters.tasks.dicom_seg import DicomSegmentations
from dinomed.adapters.tasks.segment.coco import IMAGES_FILE, RESULTS_FILE, CocoResults
from dinomed.adapters.tasks.segment.mask_schema import MaskSchema
from dinomed.adapters.tasks.segment.predict import SegmentPredictor, summarize
from dinomed.adapters.tasks.volumes import SUMMARY_FILE, VolumeMasks
from dinomed.adapters.tasks.volumes import TABLE_FILE as VOLUMES_TABLE
from dinomed.adapters.writer import PredictionWriter, Row, SheetEntry, VolumeSegOptions
from dinomed.datasets.manifest import Manifest
from dinomed.images.labelmap import read_label_map, write_label_map
from dinomed.images.read import read_mask, write_mask
from dinomed.io.files import file_names, write_json
from dinomed.io.pseudonyms import key_check

SCHEMA_FILE = "mask_schema.json"
"""The class of each value of the written maps."""


class SegmentWriter(PredictionWriter):
    """Writes PNG files of each image's own size.

    One class: masks of 0 and 255, and rows of area and confidence. Several classes: label maps, whose values
    `mask_schema.json` names, and rows of the area of each class. Both have the share of the image in the mask, and its
    uncertainty (`mask_uncertainty`). With `add_areas`, areas in mm² where the spacing is known; with `add_coco`, COCO
    results; with `add_dicom_seg`, a DICOM segmentation for each image; with `add_volumes`, the masks of slices as
    volumes.
    """

    def __init__(self, predictor: SegmentPredictor, names: Sequence[str]) -> None:
        self.predictor, self.schema = predictor, predictor.schema
        self.single = len(self.schema.names) == 1
        settings: dict[str, Any]
        if self.single:
            areas, settings = ["area_px", "area_fraction", "confidence"], {"threshold": predictor.threshold}
        else:
            areas = [*(f"area_px {self.schema.names[k]}" for k in self.schema.reported), "area_fraction"]
            settings = {"thresholds": list(predictor.thresholds), "mask_schema": self.schema.to_dict()}
        extra_files = [] if self.single else [SCHEMA_FILE]
        super().__init__(names, ["mask", *areas, "uncertainty"], file_names(names), extra_files, settings)
        self.areas: PixelAreas | None = None
        self.coco: CocoResults | None = None
        self.dicom_seg: DicomSegmentations | None = None
        self.volumes: VolumeMasks | None = None

    def add_areas(self, manifest: Manifest) -> None:
        areas = PixelAreas(manifest)
        if not areas.is_possible:
            return
        self.areas = areas
        columns: list[str] = []
        for column in self.columns:
            pixels = column.startswith("area_px")
            columns += [column, AREA_COLUMN + column.removeprefix("area_px")] if pixels else [column]
        self.columns, self.settings = columns, self.settings | {AREA_COLUMN: True}

    def add_coco(self, manifest: Manifest, ids: Path | None) -> None:
        self.coco = CocoResults(manifest, self.schema, ids)
        self.extra_files = [*self.extra_files, RESULTS_FILE, IMAGES_FILE]
        self.settings = self.settings | {"coco": self.coco.setting or True}

    def add_dicom_seg(self, manifest: Manifest, keep_ids: bool, key: bytes | None = None) -> None:
        model = str(self.predictor.metadata["weights_sha256"])
        self.dicom_seg = DicomSegmentations(manifest, self.schema, model, keep_ids, key)
        self.extra_files = [*self.extra_files, *self.dicom_seg.files]
        self.columns = [*self.columns, "dicom_seg"]
        self.settings = self.settings | {"dicom_seg": True, "keep_ids": keep_ids, "id_key": key_check(key)}

    def add_volumes(self, manifest: Manifest, seg: VolumeSegOptions | None = None) -> None:
        self.volumes = VolumeMasks(manifest, self.schema, seg, str(self.predictor.metadata["weights_sha256"]))
        self.extra_files = [*self.extra_files, *self.volumes.written_files, VOLUMES_TABLE, SUMMARY_FILE]
        self.settings = self.settings | {"volumes": True}
        if seg is not None:
            self.settings |= {"dicom_seg": True, "keep_ids": seg.keep_ids, "id_key": key_check(seg.key)}

    def finish(self, out: Path, names: Sequence[str]) -> None:
        if self.coco is not None:
            self.coco.write(out, names)
        if self.volumes is not None:
            self.volumes.write(out, self.files, set(names))

    def write_extra_files(self, out: Path) -> None:
        if not self.single:
            values = dict(zip(self.schema.names, self.schema.written_values, strict=True))
            exclusive = self.schema.exclusive
            meaning = "each value is a class" if exclusive else "a value is the sum of the classes in the pixel"
            write_json(out / SCHEMA_FILE, {"values": values, "note": meaning})

    def write_batch(
        self, indices: Sequence[int], pixels: Tensor, sizes: Sequence[tuple[int, int]], out: Path
    ) -> list[Row]:
        sources = [] if self.dicom_seg is None else self.dicom_seg.read_sources(indices)
        maps = self.predictor.batch_maps(pixels, sizes)
        decided = [self.predictor.decide(probabilities) for probabilities in maps]
        images = zip(indices, maps, decided, strict=True)
        if self.dicom_seg is None:
            return [self._write(index, probabilities, masks, out) for index, probabilities, masks in images]
        segmentations = self.dicom_seg.build(sources, indices, decided)  # before anything is written
        rows = [self._write(index, probabilities, masks, out) for index, probabilities, masks in images]
        files = [self.dicom_seg.write(out, *image) for image in zip(indices, segmentations, strict=True)]
        return [[*row, file] for row, file in zip(rows, files, strict=True)]

    def _write(self, index: int, probabilities: np.ndarray, decided: np.ndarray, out: Path) -> Row:
        name, file = self.names[index], self.files[index]
        inside = self.schema.any_class(decided).astype(bool)
        uncertainty = f"{self.predictor.uncertainty(probabilities, decided):.4f}"
        planes = self.schema.planes(decided)
        if self.coco is not None:
            self.coco.save(out, name, planes, probabilities)
        if not self.single:
            write_label_map(out / file, self.schema.encode(decided))
            areas = [cell for k in self.schema.reported for cell in self._area_cells(index, planes[k])]
            return [name, file, *areas, f"{inside.mean():.6f}", uncertainty]
        write_mask(out / file, decided[0])
        summary = summarize(probabilities[0], inside)
        confidence = None if summary.confidence is None else f"{summary.confidence:.4f}"
        areas = self._area_cells(index, inside)
        return [name, file, *areas, f"{summary.area_fraction:.6f}", confidence, uncertainty]

    def _area_cells(self, index: int, inside: np.ndarray) -> Row:
        """Return the area of a mask (H, W) in pixels, and with `add_areas` in mm² if the spacing is known."""
        pixels = int(np.count_nonzero(inside))
        return [pixels] if self.areas is None else [pixels, self.areas.cell(index, inside)]

    def sheet_entry(self, row: Row, out: Path) -> SheetEntry:
        cells = dict(zip(self.columns, row[1:], strict=False))
        share = float(cells["area_fraction"])
        text = f"{100 * share:.1f}% outlined" if share else "nothing outlined"
        read = partial(_read_outlined, self.schema, out / cells["mask"])
        return SheetEntry(text, float(cells["uncertainty"]), share, read)


def _read_outlined(schema: MaskSchema, path: Path) -> np.ndarray:
    """Read the union of the reported classes, bool (H, W), from a written file."""
    if len(schema.names) == 1:
        return read_mask(path).astype(bool)
    values = [value for k, value in enumerate(schema.written_values) if k not in schema.reported]
    return ~np.isin(read_label_map(path), values if schema.exclusive else [0])
