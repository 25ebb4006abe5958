"""Videos from outside: their frames are decoded in a process with limits on memory and time (`dinomed.isolation`)."""

import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.images.decode import UnreadableImage
from dinomed.isolation.pool import shared_pool
from dinomed.video.facts import VideoFacts, VideoFrame

CACHE_BYTES = 2**26
"""Size of the frames that a `Video` keeps: 10 frames of 1920 x 1080 px."""
_CHUNK_BYTES = 2**25  # of an answer of the decoding process
_TARGET = "dinomed.video.decoding"
_LOST = "cannot be decoded"


class Video:
    """A video file or a DICOM file of several frames, whose frames are read by their number.

    Frames have 8 bits; of more bits the upper 8 are kept. A variable rate, or a header that states a wrong number of
    frames, changes no frame's number.

    Args:
        path: path of the file.
        cache_bytes: largest size of the frames that `read` keeps.

    Attributes:
        facts: the facts of the video; without an index the number of frames is known after its last frame.
        lost: (number, reason) of frames that `stream` could not decode.

    Raises:
        UnreadableImage: no frame of the file can be read, or it exceeds a limit.
    """

    def __init__(self, path: str | Path, cache_bytes: int = CACHE_BYTES) -> None:
        self.path, self.lost = Path(path), list[tuple[int, str]]()
        self._limit, self._cache = cache_bytes, OrderedDict[int, VideoFrame]()
        content, _ = self._run("read_facts")
        self.facts = VideoFacts(**content)

    def read(self, number: int) -> VideoFrame:
        """Return a frame by its number, from the cache if it was read before.

        Raises:
            UnreadableImage: there is no such frame, or it cannot be decoded.
        """
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        frame = next(self._frames(number, number + 1, 1, record=False), None)
        if frame is None:
            known = self.facts.frames
            missing = number < 0 or (known is not None and number >= known)
            reason = f"has no frame {number}: it has {known:,} frames" if missing else f"frame {number} {_LOST}"
            raise UnreadableImage(self.path, reason)
        self._cache[number] = frame
        while len(self._cache) > 1 and sum(kept.pixels.nbytes for kept in self._cache.values()) > self._limit:
            self._cache.popitem(last=False)
        return frame

    def stream(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[VideoFrame]:
        """Yield the frames `start`, `start` + `step`, ... below `stop`, by default all; a few are in memory at a time.

        Frames that cannot be decoded are left out, and listed in `lost`. A video that cannot be read any further ends
        there, with the reason in `lost`.
        """
        return self._frames(start, stop, step, record=True)

    def _frames(self, start: int, stop: int | None, step: int, record: bool) -> Iterator[VideoFrame]:
        assert start >= 0 or not record, start
        frame_bytes = self.facts.width * self.facts.height * 3
        count = max(1, min(64, _CHUNK_BYTES // frame_bytes))
        target: int | None = max(start, 0) if start >= 0 else None
        while target is not None and (stop is None or target < stop):
            last = target + (count - 1) * step + 1
            try:
                content, pixels = self._run("read_frames", target, last if stop is None else min(last, stop), step)
            except UnreadableImage as error:
                if not record:
                    raise
                self.lost.append((target, error.reason))
                return
            self.facts = VideoFacts(**content["facts"])
            for index, (number, time_s) in enumerate(content["frames"]):
                self._note_lost(target, number, step, record)
                target = number + step
                assert pixels is not None
                yield VideoFrame(number, time_s, pixels[index])
            following: int | None = content["next"]
            end = following if following is not None else self.facts.frames if self.facts.frames is not None else target
            self._note_lost(target, end if stop is None else min(end, stop), step, record)
            target = following

    def _note_lost(self, start: int, stop: int, step: int, record: bool) -> None:
        if record:
            self.lost += [(number, _LOST) for number in range(start, stop, step)]

    def _run(self, name: str, *arguments: Any) -> tuple[Any, np.ndarray | None]:
        """Call a function of `dinomed.video.decoding` in a decoding process, whose current folder may be another."""
        answer = shared_pool().run(f"{_TARGET}:{name}", [[os.path.abspath(self.path), *arguments]])[0]
        if isinstance(answer, UnreadableImage):
            raise type(answer)(self.path, answer.reason)
        return answer
