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
        super().__init__(predictor, draw)
        if predictor.unit == "group":
            raise UsageError(
                "this classifier predicts groups of images, not single frames; write frames by `dinomed frames VIDEO "
                "-o DIR`, and predict DIR/manifest.csv with `unit=group`"
            )
        self._predictor = predictor
        self._with_sets = predictor.answer.sets is not None
        self.columns = ["predicted", *predictor.classes, *([SET_COLUMN] if self._with_sets else [])]
        self._labels: list[str] = []
        self._values: list[list[float]] = []  # of `frames`
        self._times: list[float] = []  # of all frames; nan without a prediction
        self._lines: dict[str, list[float]] = {name: [] for name in predictor.classes}

    def add(self, frame: VideoFrame, prediction: ClassPrediction) -> Row:
        values = list(prediction.probabilities.values())
        self.frames.append((frame.number, frame.time_s))
        self._labels.append(prediction.label)
        self._values.append(values)
        self._times.append(frame.time_s)
        for name, value in prediction.probabilities.items():
            self._lines[name].append(value)
        sets = ["|".join(prediction.prediction_set or ())] if self._with_sets else []
        return [prediction.label, *(f"{value:.6f}" for value in values), *sets]

    def add_lost(self) -> None:
        self._times.append(np.nan)
        for line in self._lines.values():
            line.append(np.nan)

    def summarize(self) -> dict[str, Any]:
        values = np.array(self._values)
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
            "frames_by_prediction": dict(Counter(self._labels).most_common()),
            "highest": highest,
        }

    def plot(self) -> Drawing:
        return draw_series(self._times, self._lines, "Predicted probability over time", "probability", 1.0)
