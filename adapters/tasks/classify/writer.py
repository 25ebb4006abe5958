"""Written predictions of classifiers: rows of probabilities."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from dinomed.adapters.tasks.classify.predict import ClassifyPredictor
from dinomed.adapters.writer import PredictionWriter, Row, SheetEntry

SET_COLUMN = "prediction_set"


def set_cells(predictor: ClassifyPredictor, values: np.ndarray) -> list[str]:
    """Return the cell of `SET_COLUMN` for a row of probabilities; none for an adapter without sets."""
    names = predictor.prediction_set(values)
    return [] if names is None else ["|".join(names)]


class ClassifyWriter(PredictionWriter):
    """Writes the predicted class, the probability of each class, and the prediction set (classes with | between)."""

    def __init__(self, predictor: ClassifyPredictor, names: Sequence[str]) -> None:
        self.with_sets = predictor.answer.sets is not None and predictor.unit == "image"  # not for images as groups
        super().__init__(names, ["predicted", *predictor.classes, *([SET_COLUMN] if self.with_sets else [])])
        self.predictor = predictor

    def write_batch(
        self, indices: Sequence[int], pixels: Tensor, sizes: Sequence[tuple[int, int]], out: Path
    ) -> list[Row]:
        return [
            [
                self.names[i],
                self.predictor.predicted(values),
                *(f"{value:.6f}" for value in values),
                *(set_cells(self.predictor, values) if self.with_sets else []),
            ]
            for i, values in zip(indices, self.predictor.probability_rows(pixels), strict=True)
        ]

    def sheet_entry(self, row: Row, out: Path) -> SheetEntry:
        values = np.array(row[2 : 2 + len(self.predictor.classes)], np.float64)
        return SheetEntry(self.predictor.describe(values), self.predictor.uncertainty(values))
