"""Frames of a video in order, those that cannot be decoded among them."""

from collections.abc import Iterator
from dataclasses import dataclass

from dinomed.adapters.tasks.classify.groups import evenly_spaced
from dinomed.errors import UsageError
from dinomed.images.decode import UnreadableImage
from dinomed.video.facts import VideoFrame
from dinomed.video.video import Video

_MIN_FPS = 1e-3


@dataclass(frozen=True)
class LostFrame:
    """A frame without pixels: its number, and the reason."""

    number: int
    reason: str


class FrameReader:
    """Reads the frames 0, `step`, 2 * `step`, ... of a video, or some of them; a few are in memory at a time.

    Args:
        video: the video.
        step: from one frame to the next.
        wanted: the largest number of these frames that are read, evenly spaced; None for all. The others are not
            decoded, except of a video without an index.

    Attributes:
        total: number of the frames; None if it is not known before the end.
        problem: the reason why the video cannot be read to its end; None if it can, or before the end.
    """

    def __init__(self, video: Video, step: int, wanted: int | None = None) -> None:
        self.video, self.step = video, step
        self.problem: str | None = None
        self._numbers: list[int] | None = None
        if wanted is not None:
            count = -(-video.count_frames() // step)
            self._numbers = [step * place for place in evenly_spaced(count, min(wanted, count))]
        frames = video.facts.frames
        self.total = len(self._numbers) if self._numbers is not None else frames and -(-frames // step)

    def __iter__(self) -> Iterator[VideoFrame | LostFrame]:
        """Yield each frame, a `VideoFrame` or a `LostFrame`, by increasing numbers."""
        if self._numbers is not None:
            yield from map(self._read, self._numbers)
            return
        listed = 0
        try:
            for frame in self.video.stream(self.step):
                yield from (LostFrame(*lost) for lost in self.video.lost[listed:])
                listed = len(self.video.lost)
                yield frame
        except UnreadableImage as error:
            self.problem = error.reason
        yield from (LostFrame(*lost) for lost in self.video.lost[listed:])

    def _read(self, number: int) -> VideoFrame | LostFrame:
        try:
            return self.video.read(number)
        except UnreadableImage as error:
            return LostFrame(number, error.reason)


def check_rate(fps: float | None, step: int | None) -> None:
    """Raise a `UsageError` if a wanted rate or a step is out of its range, or both are given."""
    if fps is not None and step is not None:
        raise UsageError("`fps` and `step` are two ways to read fewer frames; give one of the two")
    if fps is not None and not 0 < fps < float("inf"):
        raise UsageError(f"`fps={fps:g}` must be above 0; leave it out for every frame")
    if fps is not None and fps < _MIN_FPS:
        raise UsageError(f"`fps={fps:g}` must be at least {_MIN_FPS:g}")
    if step is not None and step < 1:
        raise UsageError(f"`step={step}` must be at least 1")


def choose_step(video_fps: float, fps: float | None, step: int | None) -> int:
    """Return the number of frames from one that is read to the next.

    Args:
        video_fps: frames a second of the video.
        fps: wanted frames a second, above 0; the nearest rate that a whole step gives is taken.
        step: the step itself; with neither every frame is read.
    """
    if fps is None:
        return step or 1
    low = max(1, int(video_fps / fps))
    return min((low, low + 1), key=lambda step: abs(video_fps / step - fps))
