"""Written predictions of segmenters: a mask or a label map for each image, and rows of areas."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dinomed.adapters.tasks.segment.predict import SegmentPredictor, summarize
from dinomed.adapters.writer import PredictionWriter, Row, file_names
from dinomed.images.labelmap import write_label_map
from dinomed.images.read import write_mask
from dinomed.io.files import write_json

SCHEMA_FILE = "mask_schema.json"
"""The class of each value of the written maps."""


class SegmentWriter(PredictionWriter):
    """Writes PNG files of each image's own size.

    One class: masks of 0 and 255, and rows of area and confidence. Several classes: label maps, whose values
    `mask_schema.json` names, and rows of the area of each class.
    """

    def __init__(self, predictor: SegmentPredictor, names: Sequence[str]) -> None:
        self.predictor, self.schema = predictor, predictor.schema
        self.single = len(self.schema.names) == 1
        if self.single:
            columns, extra_files = ["area_px", "area_fraction", "confidence"], []
            settings: dict[str, Any] = {"threshold": predictor.threshold}
        else:
            columns, extra_files = [f"area_px {self.schema.names[k]}" for k in self.schema.reported], [SCHEMA_FILE]
            settings = {"thresholds": list(predictor.thresholds), "mask_schema": self.schema.to_dict()}
        super().__init__(names, ["mask", *columns], file_names(names), extra_files, settings)

    def write_extra_files(self, out: Path) -> None:
        if not self.single:
            values = dict(zip(self.schema.names, self.schema.written_values, strict=True))
            exclusive = self.schema.exclusive
            meaning = "each value is a class" if exclusive else "a value is the sum of the classes in the pixel"
            write_json(out / SCHEMA_FILE, {"values": values, "note": meaning})

    def write_batch(
        self, indices: Sequence[int], pixels: Tensor, sizes: Sequence[tuple[int, int]], out: Path
    ) -> list[Row]:
        maps = self.predictor.batch_maps(pixels, sizes)
        return [self._write(i, probabilities, out) for i, probabilities in zip(indices, maps, strict=True)]

    def _write(self, index: int, probabilities: np.ndarray, out: Path) -> Row:
        name, file = self.names[index], self.files[index]
        decided = self.predictor.decide(probabilities)
        if not self.single:
            write_label_map(out / file, self.schema.encode(decided))
            planes = self.schema.planes(decided)
            return [name, file, *(int(planes[k].sum()) for k in self.schema.reported)]
        write_mask(out / file, decided[0])
        summary = summarize(probabilities[0], decided[0].astype(bool))
        confidence = None if summary.confidence is None else f"{summary.confidence:.4f}"
        return [name, file, summary.area_px, f"{summary.area_fraction:.6f}", confidence]
