"""Frames of a multi-frame DICOM file, by the interface of a video."""

from collections.abc import Callable
from itertools import accumulate

from dinomed.images.decode import UnreadableImage
from dinomed.images.dicom.frame_times import read_frame_times
from dinomed.images.dicom.pixels import DicomFrames
from dinomed.images.intensity import IntensityConfig, match_channels
from dinomed.video.facts import ASSUMED_FPS, NO_RATE, VideoFacts, VideoFrame
from dinomed.video.source import DecodingPaused, FrameSource


class DicomSource(FrameSource):
    """The frames of a DICOM file; each is read without those before it.

    Raises:
        UnreadableImage: as of `dinomed.images.dicom.pixels.DicomFrames`.
    """

    def __init__(self, path: str) -> None:
        self._frames = DicomFrames(path, IntensityConfig())
        self._damaged = range(0)  # the frames that the last, paused call found damaged
        header = self._frames.header
        frames, problem = header.frames, None
        if frames != (held := max(1, min(frames, self._frames.count_held()))):
            problem = f"its DICOM header states {frames:,} frames, and the file holds at most {held:,}"
            frames = held
        steps_ms = read_frame_times(path, header.frames)[:frames]
        note = None if steps_ms else NO_RATE
        steps_ms = steps_ms or [1000 / ASSUMED_FPS] * frames
        self._times_s = [time / 1000 for time in accumulate([0.0, *steps_ms[1:]])]
        mean_ms = sum(steps_ms[1:]) / max(frames - 1, 1)
        fps = 1000 / mean_ms if mean_ms > 0 else ASSUMED_FPS
        self.facts = VideoFacts(
            header.width, header.height, "DICOM", header.mode, fps, frames, header.frames, problem, note,
            constant_rate=len(set(steps_ms[1:])) < 2,
        )  # fmt: skip

    def advance(self, target: int, pause: Callable[[], bool] = lambda: False) -> VideoFrame | None:
        assert self.facts.frames is not None
        start = self._damaged.stop if target in self._damaged else target
        for number in range(start, self.facts.frames):
            if number > start and pause():
                self._damaged = range(target, number)
                raise DecodingPaused
            try:
                values = self._frames.read(number)
            except UnreadableImage:
                if number == 0:
                    raise  # its reason holds for all frames: a codec is missing, or the pixels are
                continue
            return VideoFrame(number, self._times_s[number], match_channels(values, 3))
        return None

    def close(self) -> None:
        """Do nothing: the file is open only while a frame is read."""
