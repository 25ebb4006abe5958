"""The answer of a classifier for images for a video: probabilities over time, and their mean."""

from collections import Counter
from typing import Any

import numpy as np

from dinomed.adapters.tasks.classify.predict import ClassifyPredictor, ClassPrediction
from dinomed.adapters.tasks.classify.writer import SET_COLUMN
from dinomed.adapters.video.answer import DrawMask, VideoAnswer
from dinomed.adapters.video.plot import draw_series
from dinomed.adapters.writer import Row
from dinomed.html.drawing import Drawing
from dinomed.video.facts import VideoFrame


class ClassifyVideo(VideoAnswer):
    """The class and the probabilities of each frame. That of the video is by the mean over its frames, as
    ``predict --unit group`` averages the images of a group.
    """

    plot_file = "probability.svg"
    confidence_words = "the confidence of its answer"

    def __init__(self, predictor: ClassifyPredictor, draw: DrawMask) -> None:
        super().__init__(predictor, draw, predictor.classes)
        self._classifier = predictor
        self._with_sets = predictor.has_sets
        self.columns = ["predicted", *predictor.classes, *([SET_COLUMN] if self._with_sets else [])]
        self._labels = Counter[str]()

    def add(self, frame: VideoFrame, prediction: ClassPrediction) -> Row:
        self.record(frame, prediction.probabilities)
        self._labels[prediction.label] += 1
        sets = ["|".join(prediction.prediction_set or ())] if self._with_sets else []
        return [prediction.label, *(f"{value:.6f}" for value in prediction.probabilities.values()), *sets]

    def probabilities(self) -> np.ndarray:
        """Return the probabilities for the whole video, (classes,)."""
        return np.asarray(self.values().mean(axis=0))

    @property
    def rule(self) -> str:
        """How the probabilities of the whole video come about."""
        return "mean of the probabilities over the frames"

    def confidence(self, prediction: ClassPrediction) -> float:
        values = np.array(list(prediction.probabilities.values()), np.float64)
        return 1 - self._classifier.uncertainty(values)

    def confidence_of_video(self) -> float:
        return float(self._classifier.answer.confidence(self.probabilities()[None])[0])

    def summarize(self) -> dict[str, Any]:
        values, whole = self.values(), self.probabilities()
        highest = {}
        for k, name in enumerate(self._classifier.classes):
            number, time_s = self.frames[int(values[:, k].argmax())]
            highest[name] = {
                "probability": round(float(values[:, k].max()), 6), "frame": number, "time_s": round(time_s, 3),
            }  # fmt: skip
        return {
            "predicted": self._classifier.predicted(whole),
            "probabilities": {
                name: round(float(p), 6) for name, p in zip(self._classifier.classes, whole, strict=True)
            },
            "rule": self.rule,
            "frames_by_prediction": dict(self._labels.most_common()),
            "highest": highest,
        }

    def plot(self) -> Drawing:
        return draw_series(self.times_s, self.lines, "Predicted probability over time", "probability", 1.0)
