"""Base class of the answers for a video: rows of its frames, written videos, plot and summary."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import nan
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from dinomed.adapters.predictor import Predictor
from dinomed.adapters.training_images import usable_check
from dinomed.adapters.video.dicom_seg import VideoSegOptions
from dinomed.adapters.writer import Row
from dinomed.errors import UsageError
from dinomed.features.familiarity.reference import Familiarity
from dinomed.html.drawing import Drawing
from dinomed.metrics.uncertainty.abstention import AbstentionRule
from dinomed.video.facts import VideoFrame

DrawMask = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Returns a frame, uint8 (H, W, 3), with the outline of a mask (H, W)."""
Predicted = tuple[Any, Familiarity | None]
"""The prediction for a frame, and how like the training images the frame is; None if this is not checked."""


class VideoAnswer(ABC):
    """The predictions for the frames of one video. A task names its subclass (`dinomed.adapters.task.Task`).

    Args:
        predictor: the loaded adapter.
        draw: draws the outline of a mask on a frame.
        lines: names of the lines.

    Attributes:
        columns: columns of the table between the time and the problem of a frame.
        plot_file: name of the plot.
        video_files: names of the videos that are written.
        other_files: names of further files, which `finish` writes.
        shows_frames: a written video shows the frames of the input, in which text can be masked.
        abstains_by: whether a threshold of abstention is for each frame, or for the whole video.
        confidence_words: what `confidence_of_video` returns, in words.
        wanted_frames: the largest number of evenly spaced frames that are predicted; None for all frames.
        frames: number and time, s, of each frame with a prediction, in order.
        times_s: time of each frame, s; nan without a prediction.
        lines: name -> its value in each frame; nan without a prediction.
    """

    columns: Sequence[str]
    plot_file: str
    video_files: Sequence[str] = ()
    other_files: Sequence[str] = ()
    shows_frames: ClassVar[bool] = False
    abstains_by: ClassVar[Literal["frame", "video"]] = "frame"
    confidence_words: ClassVar[str] = "the mean confidence of its frames"
    wanted_frames: int | None = None

    def __init__(self, predictor: Predictor, draw: DrawMask, lines: Iterable[str]) -> None:
        self._predictor = predictor
        self.frames: list[tuple[int, float]] = []
        self.times_s: list[float] = []
        self.lines: dict[str, list[float]] = {name: [] for name in lines}

    def begin(self, path: Path) -> None:  # noqa: B027
        """Read the header of the video file before the first frame. The base class reads nothing."""

    def add_dicom_seg(self, options: VideoSegOptions) -> None:
        """Write the masks of a DICOM file as a DICOM segmentation too."""
        raise UsageError("`dicom_seg=True` is for segmenters, since others predict no masks; leave it out")

    def finish(self, folder: Path, problem: str | None = None) -> list[str]:
        """Write `other_files` after the last frame; return the reasons why one of them is missing.

        Args:
            folder: folder of the video.
            problem: the reason why the video may have lost frames; None if it is whole.
        """
        return []

    @contextmanager
    def writing(self, folder: Path, size: tuple[int, int], fps: float) -> Iterator[None]:
        """Open the videos of `video_files` in a folder; they appear after the block, if no error occurred.

        Args:
            size: height and width of the frames, px.
            fps: frames a second of the written videos.
        """
        yield

    def predict(self, frames: Sequence[VideoFrame]) -> list[Predicted]:
        """Predict frames, and compare them with the training images by the features of the same pass.

        By default a prediction is a result of `Predictor.predict`.

        Raises:
            NotFiniteError: the model gives values that are not finite for some frames.
        """
        pixels = [frame.pixels for frame in frames]
        if usable_check(self._predictor.check)[0] is None:
            return [(result, None) for result in self._predictor.predict(pixels)]
        results = self._predictor.predict_checked(pixels)
        self._predictor.familiarity.clear()  # so that memory does not grow with the video
        return results

    @abstractmethod
    def add(self, frame: VideoFrame, prediction: Any) -> Row:
        """Write a frame with its prediction, of `predict`; return the cells of `columns`."""

    def confidence(self, prediction: Any) -> float:
        """Return how sure a prediction is, 0 to 1, as thresholds of abstention by frame compare it.

        It is not called for an adapter without thresholds, nor for thresholds of whole videos.
        """
        raise AssertionError("an adapter with thresholds by frame has a confidence")

    def confidence_of_video(self) -> float | None:
        """Return how sure the prediction for the whole video is, 0 to 1; None for the mean over its frames."""
        return None

    def describe_abstention(self, rule: AbstentionRule) -> str:
        """Return in words when frames and videos are abstained."""
        if self.abstains_by == "video":
            return rule.describe("video", "group", self.confidence_words)
        return f"{rule.describe('frame', 'image')} A video is abstained if {self.confidence_words} is below it."

    def add_lost(self) -> None:
        """Write a frame that has no prediction: black in the videos, a gap in the plot."""
        self.times_s.append(nan)
        for line in self.lines.values():
            line.append(nan)

    def record(self, frame: VideoFrame, values: Mapping[str, float]) -> None:
        """Record a frame with a prediction, and its value of each line."""
        self.frames.append((frame.number, frame.time_s))
        self.times_s.append(frame.time_s)
        for name, line in self.lines.items():
            line.append(values[name])

    def values(self) -> np.ndarray:
        """Return the values of all lines in `frames`, (frames, lines)."""
        values = np.stack([np.array(line) for line in self.lines.values()], axis=1)
        return values[np.isfinite(self.times_s)]

    @abstractmethod
    def summarize(self) -> dict[str, Any]:
        """Return the answer for the whole video, as JSON types; there is at least one frame with a prediction."""

    @abstractmethod
    def plot(self) -> Drawing:
        """Return the plot over time."""
