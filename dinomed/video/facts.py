"""Facts about a video, its frames, and the detection of video files by their content."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinomed.images.decode import first_bytes
from dinomed.images.dicom.elements import is_dicom
from dinomed.images.dicom.pixels import read_dicom_header

VIDEO_SUFFIXES = frozenset(
    [".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".m2ts", ".mts"]
)
"""Suffixes of files that are reported as damaged videos if their content is none."""
ASSUMED_FPS = 25.0
"""Frames a second of a file that states no rate."""
NO_RATE = f"states no frame rate; {ASSUMED_FPS:g} frames a second are assumed"
_TS_PACKET = 188  # bytes; with a time stamp of 4 bytes before each in M2TS
START_BYTES = 4 + 4 * (_TS_PACKET + 4)


@dataclass(frozen=True)
class VideoFacts:
    """Facts about a video.

    Attributes:
        width, height: of a frame, px, upright.
        container: MP4, AVI, Matroska, MPEG, H.264, HEVC or DICOM; of a video stream in DICOM that of the stream.
        codec: four-character code; for DICOM the photometric interpretation.
        fps: frames a second: the mean for a variable rate.
        frames: number of frames; None until they were counted.
        announced: number of frames by the header, which may be wrong; None if it states none.
        problem: one line if the file does not hold what its header announces, else None.
        note: one line about a value that is assumed, else None.
        indexed: frames are found by an index, without decoding those before; else they are counted by decoding.
        constant_rate: the frames are known to follow in equal steps.
    """

    width: int
    height: int
    container: str
    codec: str
    fps: float
    frames: int | None
    announced: int | None = None
    problem: str | None = None
    note: str | None = None
    indexed: bool = True
    constant_rate: bool = False


@dataclass(frozen=True)
class VideoFrame:
    """A frame: number from 0 in the order of display, time since the first frame in s, RGB uint8 ``(H, W, 3)``."""

    number: int
    time_s: float
    pixels: np.ndarray


def container_of(path: str | Path) -> str | None:
    """Return the container of a video file by its first bytes; None for another file.

    Only these containers are passed to FFmpeg: a playlist, which can name other files and addresses, is no video.
    """
    return container_of_start(first_bytes(path, START_BYTES))


def container_of_start(start: bytes) -> str | None:
    """Return the container of a video by its first `START_BYTES`; None for other content."""
    if start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return None if start[8:12] in (b"heic", b"heix", b"avif", b"mif1", b"crx ") else "MP4"
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return "AVI"
    if start[:4] == b"\x1a\x45\xdf\xa3":
        return "Matroska"
    if start[:4] in (b"\0\0\1\xba", b"\0\0\1\xb3"):
        return "MPEG"
    for first, length in ((0, _TS_PACKET), (4, _TS_PACKET + 4)):
        if all(start[first + i * length : first + i * length + 1] == b"G" for i in range(4)):
            return "MPEG"
    return None


def is_video(path: str | Path) -> bool:
    """Return whether a file is read as a video: a video container, or a DICOM file of several frames or
    with a video stream."""
    if is_dicom(path):
        header = read_dicom_header(path)
        return header.frames > 1 or header.video_stream
    return container_of(path) is not None
