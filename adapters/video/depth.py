"""The answer of a depth estimator for a video: exact depth maps, a view in colours, and depths over time."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.adapters.tasks.depth.predict import DepthPrediction, DepthPredictor
from dinomed.adapters.video.answer import DrawMask, VideoAnswer
from dinomed.adapters.video.plot import draw_series
from dinomed.adapters.writer import Row
from dinomed.html.drawing import Drawing
from dinomed.images.depthmap import depth_levels
from dinomed.video.facts import VideoFrame
from dinomed.video.write import SUFFIX, writing_video

MAPS_FILE, VIEW_FILE = f"depth{SUFFIX}", f"depth_colours{SUFFIX}"
COLUMNS = ("min_depth", "median_depth", "max_depth")


class DepthVideo(VideoAnswer):
    """Depth maps, in the unit of the training maps.

    The exact video has gray values of 16 bits: depth = value * scale, and 0 is unknown. The view has colours from the
    smallest (dark) to the largest (bright) depth of the training maps, the same ones in all frames.
    """

    plot_file = "depth.svg"
    video_files = (MAPS_FILE, VIEW_FILE)
    columns = COLUMNS

    def __init__(self, predictor: DepthPredictor, draw: DrawMask) -> None:
        super().__init__(predictor, draw, COLUMNS)
        self._low, self._high, self._unit = predictor.low, predictor.high, predictor.source.unit
        self._scale = predictor.file_scale
        self._append: list[Callable[[np.ndarray], None]] = []
        self._size = (0, 0)

    @contextmanager
    def writing(self, folder: Path, size: tuple[int, int], fps: float) -> Iterator[None]:
        self._size = size
        with ExitStack() as stack:
            exact = writing_video(folder / MAPS_FILE, size, fps, lossless=True, bits=16)
            self._append = [
                stack.enter_context(video) for video in (exact, writing_video(folder / VIEW_FILE, size, fps))
            ]
            yield

    def add(self, frame: VideoFrame, prediction: DepthPrediction) -> Row:
        depth = prediction.depth
        measured = dict(zip(COLUMNS, map(float, (depth.min(), np.median(depth), depth.max())), strict=True))
        maps, view = self._append
        maps(depth_levels(depth, self._scale))
        view(colour_depth(depth, self._low, self._high))
        self.record(frame, measured)
        return [f"{value:.6g}" for value in measured.values()]

    def add_lost(self) -> None:
        maps, view = self._append
        maps(np.zeros(self._size, np.uint16))
        view(np.zeros(self._size, np.uint8))
        super().add_lost()

    def summarize(self) -> dict[str, Any]:
        smallest, median, largest = self.values().T
        answer: dict[str, Any] = {"unit": self._unit}
        for name, values, place in (
            ("smallest_depth", smallest, int(smallest.argmin())),
            ("largest_depth", largest, int(largest.argmax())),
        ):
            number, time_s = self.frames[place]
            answer |= {name: float(f"{values[place]:.6g}"), f"{name}_frame": number, f"{name}_time_s": round(time_s, 3)}
        return answer | {
            "median_depth": float(f"{np.median(median):.6g}"),
            "maps": {"file": MAPS_FILE, "scale": self._scale, "note": "depth = value * scale; 0 means unknown"},
            "colours": {"file": VIEW_FILE, "darkest": self._low, "brightest": self._high},
        }

    def plot(self) -> Drawing:
        names = ("smallest", "median", "largest")
        lines = dict(zip(names, self.lines.values(), strict=True))
        return draw_series(self.times_s, lines, "Predicted depth over time", self._unit or "depth")


def colour_depth(depth: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return depths (H, W) as colours, uint8 RGB (H, W, 3): dark at `low` and below, bright at `high` and above."""
    import cv2

    share = np.clip((depth - low) / (high - low), 0, 1)
    colours = cv2.applyColorMap(np.rint(255 * share).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return np.ascontiguousarray(colours[..., ::-1])
