"""The answer of a classifier for a video: probabilities over time, and their mean."""

from collections import Counter
from typing import Any

import numpy as np

from dinomed.adapters.tasks.classify.predict import ClassifyPredictor, ClassPrediction
from dinomed.adapters.tasks.classify.writer import SET_COLUMN
from dinomed.adapters.video.answer import DrawMask, VideoAnswer
from dinomed.adapters.video.plot import draw_series
from dinomed.adapters.writer import Row
from dinomed.errors import UsageError
from dinomed.html.drawing import Drawing
from dinomed.video.facts import VideoFrame

RULE = "mean of the probabilities over the frames"


class ClassifyVideo(VideoAnswer):
    """The class and the probabilities of each frame. That of the video is by the mean over its frames, as
    ``predict --unit group`` averages the images of a group.

    Raises:
        UsageError: the adapter predicts groups of images by their features, and no single ones.
    """

    plot_file = "probability.svg"

    def __init__(self, predictor: ClassifyPredictor, draw: DrawMask) -> None:
        if predictor.unit == "group":
            raise UsageError(
                "this classifier predicts groups of images, not single frames; write frames by `dinomed frames VIDEO "
                "-o DIR`, and predict DIR/manifest.csv with `unit=group`"
            )
        super().__init__(predictor, draw, predictor.classes)
        self._predictor = predictor
        self._with_sets = predictor.has_sets
        self.columns = ["predicted", *predictor.classes, *([SET_COLUMN] if self._with_sets else [])]
        self._labels = Counter[str]()

    def add(self, frame: VideoFrame, prediction: ClassPrediction) -> Row:
        self.record(frame, prediction.probabilities)
        self._labels[prediction.label] += 1
        sets = ["|".join(prediction.prediction_set or ())] if self._with_sets else []
        return [prediction.label, *(f"{value:.6f}" for value in prediction.probabilities.values()), *sets]

    def confidence(self, prediction: ClassPrediction) -> float:
        values = np.array(list(prediction.probabilities.values()), np.float64)
        return 1 - self._predictor.uncertainty(values)

    def summarize(self) -> dict[str, Any]:
        values = self.values()
        mean = values.mean(axis=0)
        highest = {}
        for k, name in enumerate(self._predictor.classes):
            number, time_s = self.frames[int(values[:, k].argmax())]
            highest[name] = {
                "probability": round(float(values[:, k].max()), 6), "frame": number, "time_s": round(time_s, 3),
            }  # fmt: skip
        return {
            "predicted": self._predictor.predicted(mean),
            "probabilities": {name: round(float(p), 6) for name, p in zip(self._predictor.classes, mean, strict=True)},
            "rule": RULE,
            "frames_by_prediction": dict(self._labels.most_common()),
            "highest": highest,
        }

    def plot(self) -> Drawing:
        return draw_series(self.times_s, self.lines, "Predicted probability over time", "probability", 1.0)
