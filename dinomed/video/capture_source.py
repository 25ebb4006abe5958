"""Frames of a video file, decoded by OpenCV's FFmpeg.

OpenCV finds a frame by its nominal rate, which is wrong for a variable rate and for a wrong header. Here each decoded
frame is identified by its time stamp in the index of packets. Where the time stamps of frames and packets differ, the
frames are counted from the first one.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dinomed.errors import DinomedError
from dinomed.images.bounds.containers import too_large
from dinomed.images.decode import MAX_PIXELS, refusing
from dinomed.video.facts import ASSUMED_FPS, NO_RATE, VideoFacts, VideoFrame, container_of
from dinomed.video.packets import MAX_FRAMES, EmbeddedAddress, PacketIndex, open_capture, read_packets, seeks_truly
from dinomed.video.source import DecodingPaused, FrameSource

_CHECKED = 24  # frames from the start whose time stamps must agree with the index
_FORWARD = 48  # frames that are decoded rather than sought
_RETRIES = 32  # packets in a row that cannot be decoded, before a video without an index ends
_BACK = (0, 16, 40)  # frames before the target from which a seek is tried
_NO_AV1 = "its codec is AV1, for which OpenCV has no decoder on this machine; convert it to H.264 or VP9"
_NO_MATROSKA_RATE = 1000  # FFmpeg's rate for Matroska without one: the unit of its time stamps
_SAME_RATE = 1.1
_CUT = 0.95  # a video that ends before this share of its announced time is called cut off


class CaptureSource(FrameSource):
    """The frames of a video file.

    Args:
        path: path of the file.
        max_pixels: largest number of pixels of a frame.
        stream: the video is a part of the file: its address, and its container.

    Raises:
        UnreadableImage: the file is no video, is damaged, has no frame, or has too large frames.
    """

    def __init__(
        self, path: str, max_pixels: int = MAX_PIXELS, stream: tuple[EmbeddedAddress, str | None] | None = None
    ) -> None:
        self.path, self._max_pixels = path, max_pixels
        self._first_ms = 0.0
        with refusing(path):
            self._address, container = stream or (path, container_of(path))
            if container is None:
                if stream is not None:
                    raise DinomedError(
                        "its video stream is not one that is read (MPEG-2, H.264, HEVC, MP4 or Matroska)"
                    )
                raise DinomedError("not a video (MP4, MOV, AVI, Matroska, WebM or MPEG)")
            self._index = read_packets(self._address)
            self._numbers = {} if self._index is None else {t: k for k, t in enumerate(self._index.times_ms)}
            self._open()
            self.facts = self._read_facts(container)
            if self._index is not None and not self._agrees(self._index):
                self._index = None
            if self._index is None and container == "Matroska" and self.facts.fps == _NO_MATROSKA_RATE:
                self.facts = replace(self.facts, fps=ASSUMED_FPS, note=NO_RATE)  # until all frames are decoded
            self._open()
            if self._index is not None:
                self._first_ms = self._index.times_ms[0]
                self._finish(len(self._index.times_ms), self._index.times_ms[-1])
                # what a seek reaches is checked: OpenCV may not move in a file that announces no number of frames
                self._can_seek = len(self._index.keys) > 1 and (
                    container != "AVI"
                    or (self.facts.announced == self.facts.frames and seeks_truly(self._address, self._index))
                )

    def _open(self) -> None:
        """Open the file at its first frame."""
        self.close()
        self._capture, self._closed = open_capture(self._address), False
        self._next = 0  # number of the frame that is decoded next, if the index is not used
        self._newest = -1  # number of the frame that was decoded last
        self._time_ms = 0.0  # of that frame
        self._ended = False  # its pixels are gone, too

    def close(self) -> None:
        self._closed = True
        if hasattr(self, "_capture"):
            self._capture.release()

    def _read_facts(self, container: str) -> VideoFacts:
        import cv2

        width, height = (int(self._capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > self._max_pixels:
            raise DinomedError(too_large(width * height, self._max_pixels))
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        has_rate = 0 < fps < 100_000
        announced = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        code = int(self._capture.get(cv2.CAP_PROP_FOURCC))
        codec = "".join(chr(code >> shift & 255) for shift in (0, 8, 16, 24)).strip("\0 ")
        if not self._capture.grab():
            reason = _NO_AV1 if codec.upper() == "AV01" else "damaged, cut off, or of an unknown codec"
            raise DinomedError(f"no frame can be decoded: {reason}")
        height, width = self._picture(None).shape[:2]
        return VideoFacts(
            width, height, container, codec if codec.isprintable() else "unknown",
            fps if has_rate else ASSUMED_FPS, None, announced if 0 < announced <= MAX_FRAMES else None,
            note=None if has_rate else NO_RATE, indexed=False,
        )  # fmt: skip

    def _agrees(self, index: PacketIndex) -> bool:
        """Return whether the first frames have the first time stamps of the index."""
        self._open()
        return all(self._capture.grab() and self._stamp() == time for time in index.times_ms[:_CHECKED])

    def advance(self, target: int, pause: Callable[[], bool] = lambda: False) -> VideoFrame | None:
        with refusing(self.path):
            if self._closed:
                self._open()
            reached = self._decode_to(target, pause)
            frame = VideoFrame(self._newest, self._time_s, self._picture(self.facts)) if reached else None
        if reached is None:
            raise DecodingPaused
        return frame

    def _decode_to(self, target: int, pause: Callable[[], bool]) -> bool | None:
        """Decode up to the first frame from `target` on; return False after the last frame, None for a pause."""
        if self._ended and target > self._newest:
            return False
        if self._index is None:
            if target < self._newest + self._ended:
                self._open()
        elif not self._continues_to(self._index, target):
            self._seek(self._index, target)
        while self._newest < target:
            if pause():
                return None
            self._ended = not self._grab()
            if self._ended:
                return False
        return True

    def _continues_to(self, index: PacketIndex, target: int) -> bool:
        """Return whether frame `target` is reached from here at least as fast as by seeking."""
        ahead = target - self._newest
        return ahead >= self._ended and (
            ahead <= _FORWARD or not self._can_seek or _key_before(index, target) <= self._newest
        )

    def _grab(self) -> bool:
        """Decode the next frame; return False if there is none."""
        if not self._capture.grab():
            if self._index is not None:
                return self._skip_damage(self._index)
            if not any(self._capture.grab() for _ in range(_RETRIES)):
                self._finish(self._next, self._time_ms)
                return False
        stamp = self._stamp()
        if self._index is not None:
            self._newest = self._numbers.get(stamp, self._newest)
        else:
            if self._next == 0:
                self._first_ms = stamp
            elif stamp <= self._time_ms:  # no usable time stamps
                stamp = self._first_ms + self._next * 1000 / self.facts.fps
            self._newest, self._next = self._next, self._next + 1
            if self._next > MAX_FRAMES:
                raise DinomedError(f"more than {MAX_FRAMES:,} frames; cut the video into parts")
        self._time_ms = stamp
        return True

    def _seek(self, index: PacketIndex, target: int) -> None:
        """Set the position at or before frame `target`; the frames up to it are then decoded."""
        import cv2

        if self._can_seek and target > _FORWARD:
            longest = max(_FORWARD, target - _key_before(index, target))
            for back in _BACK:
                self._capture.set(cv2.CAP_PROP_POS_MSEC, index.times_ms[min(target, len(index.times_ms) - 1) - back])
                number = self._numbers.get(self._stamp()) if self._capture.grab() else None
                if number is not None and target - longest - back <= number <= target:
                    self._newest, self._time_ms, self._ended = number, index.times_ms[number], False
                    return
            self._can_seek = False
        self._open()

    def _skip_damage(self, index: PacketIndex) -> bool:
        """Continue at the next frame that needs no frame before it; return False if there is none."""
        remaining = len(index.times_ms) - self._newest
        for _ in range(remaining if bisect_right(index.keys, self._newest) < len(index.keys) else 0):
            number = self._numbers.get(self._stamp(), -1) if self._capture.grab() else -1
            if number > self._newest and _key_before(index, number) == number:
                self._newest, self._time_ms = number, index.times_ms[number]
                return True
        return False

    def _stamp(self) -> float:
        import cv2

        return round(float(self._capture.get(cv2.CAP_PROP_POS_MSEC)), 3)

    def _picture(self, facts: VideoFacts | None) -> np.ndarray:
        """Return the frame that was decoded last, RGB uint8 (H, W, 3)."""
        import cv2

        good, picture = self._capture.retrieve()
        if not good or picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise DinomedError("a frame cannot be converted to RGB of 8 bits")
        if picture.shape[0] * picture.shape[1] > self._max_pixels:
            raise DinomedError(too_large(picture.shape[0] * picture.shape[1], self._max_pixels))
        if facts is not None and picture.shape[:2] != (facts.height, facts.width):
            raise DinomedError(f"the size of its frames changes at frame {self._newest}; cut the video there")
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))

    @property
    def _time_s(self) -> float:
        return (self._time_ms - self._first_ms) / 1000

    def _finish(self, frames: int, last_ms: float) -> None:
        """Set the number of frames, and compare it with what the header announces."""
        facts, problem = self.facts, None
        if facts.announced is not None:
            ends_s, expected_s = (last_ms - self._first_ms) / 1000 + 1 / facts.fps, facts.announced / facts.fps
            if frames < facts.announced and ends_s < _CUT * expected_s:
                problem = (
                    f"cut off or damaged: its header announces {facts.announced:,} frames ({expected_s:.1f} s), and "
                    f"{frames:,} are in the file ({ends_s:.1f} s)"
                )
            elif frames > facts.announced and facts.container in ("MP4", "AVI"):
                problem = f"its header announces {facts.announced:,} frames, and {frames:,} are in the file"
        steady, fps, note = self._is_steady(facts.fps), facts.fps, facts.note
        if not steady and last_ms > self._first_ms:
            mean = (frames - 1) * 1000 / (last_ms - self._first_ms)
            if not mean / _SAME_RATE < fps < mean * _SAME_RATE:
                fps, note, steady = mean, None, self._is_steady(mean)
        self.facts = replace(
            facts, fps=fps, frames=frames, problem=problem, note=note, indexed=self._index is not None,
            constant_rate=steady,
        )  # fmt: skip

    def _is_steady(self, fps: float) -> bool:
        """Return whether the frames are known to follow at a rate."""
        return self._index is not None and _is_steady(self._index.times_ms, fps)


def _key_before(index: PacketIndex, number: int) -> int:
    """Return the last frame up to `number` at which decoding can start."""
    place = bisect_right(index.keys, number)
    return index.keys[place - 1] if place else 0


def _is_steady(times_ms: list[float], fps: float) -> bool:
    """Return whether frame `k` is shown `k` / `fps` after the first, within a quarter of a step."""
    step_ms = 1000 / fps
    return all(abs(time - times_ms[0] - k * step_ms) < step_ms / 4 for k, time in enumerate(times_ms))
