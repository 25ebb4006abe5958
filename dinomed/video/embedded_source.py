"""Frames of the video stream in a DICOM file: MPEG-2, H.264 or HEVC, as endoscopes store them (PS3.5, 8.2.5 to 8.2.12).

FFmpeg reads the stream in the file, between the bytes where it starts and ends, so that no copy is written.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import BinaryIO

from dinomed.errors import DinomedError
from dinomed.images.bounds.dicom_fragments import find_fragments
from dinomed.images.decode import MAX_PIXELS
from dinomed.images.dicom.codecs import transfer_syntax
from dinomed.images.dicom.elements import read_header, reading_dicom
from dinomed.images.dicom.frame_times import read_frame_times
from dinomed.images.dicom.pixels import read_dicom_header
from dinomed.video.capture_source import CaptureSource
from dinomed.video.facts import NO_RATE, START_BYTES, VideoFacts, VideoFrame, container_of_start
from dinomed.video.packets import EmbeddedAddress
from dinomed.video.source import FrameSource

_START_CODES = (b"\0\0\0\1", b"\0\0\1")
_MPEG_2_SEQUENCE = b"\0\0\1\xb3"
_LONG_MPEG_2_SEQUENCE = b"\0" + _MPEG_2_SEQUENCE
_HEVC = ("1.2.840.10008.1.2.4.107", "1.2.840.10008.1.2.4.108")


class EmbeddedSource(FrameSource):
    """The frames of a DICOM file whose pixels are one video stream.

    Frames are numbered as those of the stream; the number of frames in the DICOM header is compared with it. Times are
    those of the stream. A stream that is not in a container has none, so that its times follow from the frame time of
    the DICOM header, or else from the rate that the stream states.

    Args:
        path: path of the file.
        max_pixels: largest number of pixels of a frame.

    Raises:
        UnreadableImage: the file is damaged, its stream is no video or cannot be decoded, or its frames have another
            size than the header states.
    """

    def __init__(self, path: str, max_pixels: int = MAX_PIXELS) -> None:
        header = read_dicom_header(path, max_pixels)
        with reading_dicom(path) as file:
            elements = read_header(file, ["NumberOfFrames"])  # up to the pixels
            self._announced = int(elements.get("NumberOfFrames") or 0) or None
            places, self._is_cut = find_fragments(file)
            if not places:
                raise DinomedError("its video stream is empty")
            container, is_bare = _container_of(_first_bytes(file, places), transfer_syntax(path))
            address = _address(path, places)
        self._source = CaptureSource(path, max_pixels, (address, container))
        facts = self._source.facts
        with reading_dicom(path):
            if (facts.width, facts.height) != (header.width, header.height):
                raise DinomedError(
                    f"the header declares {header.width}x{header.height} px, its video has {facts.width}x{facts.height}"
                )
        steps_ms = read_frame_times(path, self._announced) if is_bare or facts.note == NO_RATE else []
        self._times_s = [time / 1000 for time in accumulate([0.0, *steps_ms[1:]])] if steps_ms else []
        self._step_s = self._times_s[-1] / (len(steps_ms) - 1) if len(steps_ms) > 1 else sum(steps_ms) / 1000
        self._is_steady = len(set(steps_ms[1:])) < 2

    @property
    def facts(self) -> VideoFacts:  # type: ignore[override]
        """The facts of the stream, with the problems of its DICOM file."""
        facts = replace(self._source.facts, announced=self._announced)
        problem = facts.problem
        if self._is_cut:
            problem = "the DICOM file is cut off in its video" + ("" if problem is None else f"; {problem}")
        elif None not in (facts.frames, self._announced) and facts.frames != self._announced:
            unit = "frame" if self._announced == 1 else "frames"
            problem = f"its DICOM header states {self._announced:,} {unit}, and its video has {facts.frames:,}"
        if self._step_s:
            facts = replace(facts, fps=1 / self._step_s, note=None, constant_rate=self._is_steady)
        return replace(facts, problem=problem)

    def advance(self, target: int, pause: Callable[[], bool] = lambda: False) -> VideoFrame | None:
        frame = self._source.advance(target, pause)
        return frame if frame is None or not self._step_s else replace(frame, time_s=self._time_s(frame.number))

    def close(self) -> None:
        self._source.close()

    def _time_s(self, number: int) -> float:
        """Return the time of a frame by the DICOM header, which may state fewer frames than there are."""
        last = len(self._times_s) - 1
        return self._times_s[min(number, last)] + max(number - last, 0) * self._step_s


def _first_bytes(file: BinaryIO, places: Sequence[tuple[int, int]]) -> bytes:
    """Return the first `START_BYTES` of the stream."""
    parts = b""
    for start, end in places:
        file.seek(start)
        parts += file.read(min(end - start, START_BYTES - len(parts)))
        if len(parts) == START_BYTES:
            break
    return parts


def _container_of(start: bytes, syntax: str | None) -> tuple[str | None, bool]:
    """Return the container of a stream, and whether it is bare: its frames have no time stamps."""
    container = container_of_start(start)
    if start.startswith(_LONG_MPEG_2_SEQUENCE):
        return "MPEG", True
    if container is None and start.startswith(_START_CODES):
        return ("HEVC" if syntax in _HEVC else "H.264"), True
    return container, start.startswith(_MPEG_2_SEQUENCE)


def _address(path: str, places: Sequence[tuple[int, int]]) -> EmbeddedAddress:
    """Return the address of the parts of a file, one after the other."""
    parts = [f"subfile,,start,{start},end,{end},,:{os.path.abspath(path)}" for start, end in places]
    if len(parts) > 1 and "|" in parts[0]:
        raise DinomedError("its video has several fragments, and its path holds the sign |; rename it")
    return EmbeddedAddress(parts[0] if len(parts) == 1 else "concat:" + "|".join(parts))
