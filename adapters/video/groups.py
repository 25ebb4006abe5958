"""The answer of a classifier for groups for a video: one prediction from evenly spaced frames, as it was trained."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dinomed.adapters.tasks.classify.groups import evenly_spaced
from dinomed.adapters.tasks.classify.predict import ClassifyPredictor
from dinomed.adapters.tasks.classify.writer import SET_COLUMN
from dinomed.adapters.video.answer import DrawMask, Predicted
from dinomed.adapters.video.classify import ClassifyVideo
from dinomed.adapters.writer import Row
from dinomed.features.compute import Features
from dinomed.features.familiarity.reference import Familiarity
from dinomed.features.finite import naming
from dinomed.features.loading import preprocess_batches
from dinomed.video.facts import VideoFrame


class GroupVideo(ClassifyVideo):
    """The video is a group: the features of its evenly spaced frames are averaged or concatenated as in training.

    The row of a frame has the prediction for this frame alone, as a group of one image. Abstention and the prediction
    set are of the video.
    """

    abstains_by = "video"

    def __init__(self, predictor: ClassifyPredictor, draw: DrawMask) -> None:
        super().__init__(predictor, draw)
        self.wanted_frames = predictor.answer.frames
        self._features: list[Features] = []
        self._values: np.ndarray | None = None

    def predict(self, frames: Sequence[VideoFrame]) -> list[Predicted]:
        predictor, results = self._classifier, list[Predicted]()
        names = [f"frame {frame.number}" for frame in frames]
        sources = [frame.pixels for frame in frames]
        for pixels, _ in preprocess_batches(sources, predictor.preprocessing, predictor.batch_size):
            with naming(names, len(results)):
                alone, features = predictor.predict_members(pixels)
                checked: Sequence[Familiarity | None] = predictor.check_batch(pixels) or [None] * len(alone)
            for row, (prediction, familiarity) in enumerate(zip(alone, checked, strict=True)):
                part = Features(features.cls[row : row + 1], features.mean[row : row + 1])
                results.append(((prediction, part), familiarity))
        predictor.familiarity.clear()
        return results

    def add(self, frame: VideoFrame, prediction: Any) -> Row:
        """Write a frame with its prediction: a `ClassPrediction` and the features of the frame."""
        alone, features = prediction
        self._features.append(features)
        return super().add(frame, alone)

    def probabilities(self) -> np.ndarray:
        if self._values is None:
            answer, count = self._classifier.answer, len(self._features)
            rows = evenly_spaced(count, answer.frames) if answer.pool == "concat" else list(range(count))
            self._values = self._classifier.pooled_rows(self._features, [rows])[0]
        return self._values

    def summarize(self) -> dict[str, Any]:
        summary = super().summarize()
        if self._classifier.has_group_sets:
            summary[SET_COLUMN] = "|".join(self._classifier.group_set(self.probabilities()))
        return summary

    @property
    def rule(self) -> str:
        pooled = "concatenated" if self._classifier.answer.pool == "concat" else "averaged"
        return f"{pooled} features of {len(self._features)} evenly spaced frames"


def build_answer(predictor: ClassifyPredictor, draw: DrawMask) -> ClassifyVideo:
    """Return the answer of a classifier, which is for images or for groups."""
    return (GroupVideo if predictor.unit == "group" else ClassifyVideo)(predictor, draw)
