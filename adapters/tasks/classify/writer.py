"""Written predictions of classifiers: rows of probabilities."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from dinomed.adapters.tasks.classify.predict import ClassifyPredictor
from dinomed.adapters.writer import PredictionWriter, Row


class ClassifyWriter(PredictionWriter):
    """Writes the predicted class and the probability of each class."""

    def __init__(self, predictor: ClassifyPredictor, names: Sequence[str]) -> None:
        super().__init__(names, ["predicted", *predictor.classes])
        self.predictor = predictor

    def write_batch(
        self, indices: Sequence[int], pixels: Tensor, sizes: Sequence[tuple[int, int]], out: Path
    ) -> list[Row]:
        return [
            [self.names[i], self.predictor.predicted(values), *(f"{value:.6f}" for value in values)]
            for i, values in zip(indices, self.predictor.probability_rows(pixels), strict=True)
        ]
