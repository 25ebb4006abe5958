"""Videos from outside: their frames are decoded in a process with limits on memory and time (`dinomed.isolation`)."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.images.decode import UnreadableImage
from dinomed.isolation.pool import shared_pool
from dinomed.video.facts import VideoFacts, VideoFrame
from dinomed.video.packets import MAX_FRAMES

_CHUNK_BYTES = 2**25  # of an answer of the decoding process
_TARGET = "dinomed.video.decoding"
_LOST = "cannot be decoded"


class LostFrame(UnreadableImage):
    """A frame that cannot be decoded, of a video whose other frames may be readable."""


class Video:
    """A video file or a DICOM file of several frames, whose frames are read by their number.

    Frames have 8 bits; of more bits the upper 8 are kept. A variable rate, or a header that states a wrong number of
    frames, changes no frame's number.

    Args:
        path: path of the file.

    Attributes:
        facts: the facts of the video; without an index the number of frames is known after its last frame.
        lost: (number, reason) of frames that `stream` could not decode.

    Raises:
        UnreadableImage: no frame of the file can be read, or it exceeds a limit.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.lost = Path(path), list[tuple[int, str]]()
        content, _ = self._run("read_facts")
        self.facts = VideoFacts(**content)

    def read(self, number: int) -> VideoFrame:
        """Return a frame by its number.

        Raises:
            LostFrame: it cannot be decoded.
            UnreadableImage: there is no such frame, or the video cannot be read.
        """
        target: int | None = number if number >= 0 else None
        while target is not None and target <= number:
            frames, target = self._read(target, number + 1, 1)
            if frames:
                return frames[0]
        known = self.facts.frames
        if number >= 0 and (known is None or number < known):
            raise LostFrame(self.path, f"frame {number} {_LOST}")
        raise UnreadableImage(
            self.path, f"has no frame {number}" + ("" if known is None else f": it has {known:,} frames")
        )

    def count_frames(self) -> int:
        """Return the number of frames. A video without an index is decoded to its end for it.

        Raises:
            UnreadableImage: the video cannot be read, or has too many frames.
        """
        while self.facts.frames is None:
            self._read(MAX_FRAMES, MAX_FRAMES + 1, 1)
        return self.facts.frames

    def stream(self, step: int = 1) -> Iterator[VideoFrame]:
        """Yield the frames 0, `step`, 2 * `step`, ...; a few are in memory at a time.

        Frames that cannot be decoded are left out, and listed in `lost`.

        Raises:
            UnreadableImage: the video cannot be read any further; the next frame is in `lost`, too.
        """
        count = max(1, min(64, _CHUNK_BYTES // (self.facts.width * self.facts.height * 3)))
        target: int | None = 0
        while target is not None:
            try:
                frames, following = self._read(target, target + (count - 1) * step + 1, step)
            except UnreadableImage as error:
                self.lost.append((target, error.reason))
                reason = f"{error.reason}; its frames from {target:,} on are missing"
                raise type(error)(self.path, reason) from None
            expected = target
            for frame in frames:
                self.lost += [(number, _LOST) for number in range(expected, frame.number, step)]
                expected = frame.number + step
                yield frame
            end = self.facts.frames if following is None else following
            self.lost += [(number, _LOST) for number in range(expected, end or 0, step)]
            target = following

    def _read(self, start: int, stop: int, step: int) -> tuple[list[VideoFrame], int | None]:
        """Read some of the frames `start`, `start` + `step`, ... below `stop`; return them and where to continue."""
        content, pixels = self._run("read_frames", start, stop, step)
        self.facts = VideoFacts(**content["facts"])
        rows = zip(content["frames"], [] if pixels is None else pixels, strict=True)
        return [VideoFrame(number, time_s, picture) for (number, time_s), picture in rows], content["next"]

    def _run(self, name: str, *arguments: Any) -> tuple[Any, np.ndarray | None]:
        """Call a function of `dinomed.video.decoding` in a decoding process, whose current folder may be another."""
        answer = shared_pool().run(f"{_TARGET}:{name}", [[os.path.abspath(self.path), *arguments]])[0]
        if isinstance(answer, UnreadableImage):
            raise type(answer)(self.path, answer.reason)
        return answer
