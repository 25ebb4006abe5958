"""Written predictions of classifiers: rows of probabilities."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from dinomed.adapters.tasks.classify.predict import ClassifyPredictor, EnsembleClassifier
from dinomed.adapters.writer import PredictionWriter, Row, SheetEntry

SET_COLUMN = "prediction_set"


CONFIDENCE_COLUMN = "confidence"


class ClassifyWriter(PredictionWriter):
    """Writes the predicted class, the probability of each class, and the prediction set (classes with | between).

    The row of an ensemble also has its confidence, which its probabilities do not determine.
    """

    def __init__(self, predictor: ClassifyPredictor, names: Sequence[str]) -> None:
        averages = isinstance(predictor, EnsembleClassifier)
        further = [CONFIDENCE_COLUMN] * averages + [SET_COLUMN] * predictor.has_sets
        super().__init__(names, ["predicted", *predictor.classes, *further])
        self.predictor, self._averages = predictor, averages

    def write_batch(
        self, indices: Sequence[int], pixels: Tensor, sizes: Sequence[tuple[int, int]], out: Path
    ) -> list[Row]:
        rows = self.predictor.rows(pixels)
        cells: list[Row] = []
        for row, (i, values) in enumerate(zip(indices, rows.probabilities, strict=True)):
            cells.append([self.names[i], self.predictor.predicted(values), *(f"{value:.6f}" for value in values)])
            if self._averages:
                cells[-1].append(f"{rows.confidence[row]:.6f}")
            if rows.sets is not None:
                cells[-1].append("|".join(self.predictor.names_of_set(rows.sets[row])))
        return cells

    def sheet_entry(self, row: Row, out: Path) -> SheetEntry:
        end = 2 + len(self.predictor.classes)
        values = np.array(row[2:end], np.float64)
        uncertainty = 1 - float(row[end]) if self._averages else self.predictor.uncertainty(values)
        return SheetEntry(self.predictor.describe(values), uncertainty)
