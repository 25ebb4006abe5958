"""Writer of depth predictions: a depth map for each image, and a table row with its range of depths."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from dinomed.adapters.tasks.depth.predict import DepthPredictor
from dinomed.adapters.writer import PredictionWriter, Row
from dinomed.images.depthmap import write_depth
from dinomed.io.files import file_names, write_json

SCALE_FILE = "depth_scale.json"


class DepthWriter(PredictionWriter):
    """Writer of gray 16-bit PNG files; `depth_scale.json` has the scale that converts a value to a depth."""

    def __init__(self, predictor: DepthPredictor, names: Sequence[str]) -> None:
        self.predictor = predictor
        columns = ["depth", "min_depth", "median_depth", "max_depth"]
        super().__init__(names, columns, file_names(names), [SCALE_FILE], {"scale": predictor.file_scale})

    def write_extra_files(self, out: Path) -> None:
        note = "depth = value * scale; 0 means unknown"
        unit = self.predictor.source.unit
        write_json(out / SCALE_FILE, {"scale": self.predictor.file_scale, "unit": unit, "note": note})

    def write_batch(
        self, indices: Sequence[int], pixels: Tensor, sizes: Sequence[tuple[int, int]], out: Path
    ) -> list[Row]:
        rows = []
        for i, maps in zip(indices, self.predictor.batch_maps(pixels, sizes), strict=True):
            write_depth(out / self.files[i], maps[0], self.predictor.file_scale)
            depths = (float(maps[0].min()), float(np.median(maps[0])), float(maps[0].max()))
            rows.append([self.names[i], self.files[i], *(f"{depth:.6g}" for depth in depths)])
        return rows
