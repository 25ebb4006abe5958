"""Index of a video file: the time stamps of its packets, read without decoding them.

In the order of their time stamps, the packets are the frames. So frame `k` is known without decoding the frames before
it, also if the rate varies or the header states a wrong number of frames.
"""

import threading
import zlib
from dataclasses import dataclass
from typing import Any

from dinomed.environment import environment_variable
from dinomed.errors import DinomedError

MAX_FRAMES = 4_000_000
"""Largest number of frames: 18 hours at 60 a second."""
_SAMPLES = 16
_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
# A file cannot make FFmpeg open another file or an address.
_FORMATS = "mov,avi,matroska,mpeg,mpegts,mpegvideo"
_LIMITS = f"protocol_whitelist;file|format_whitelist;{_FORMATS}"
_EMBEDDED_LIMITS = f"protocol_whitelist;file,subfile,concat|format_whitelist;{_FORMATS},h264,hevc"
_lock = threading.Lock()


class EmbeddedAddress(str):
    """Parts of a file that are a video stream, as FFmpeg names them (its protocols ``subfile`` and ``concat``)."""

    __slots__ = ()


@dataclass(frozen=True)
class PacketIndex:
    """The frames of a file by its packets.

    Attributes:
        times_ms: time of each frame since the first, increasing.
        keys: numbers of the frames at which decoding can start, increasing.
        samples: time of some packets -> checksum of their bytes.
    """

    times_ms: list[float]
    keys: list[int]
    samples: dict[float, int]


def open_capture(path: str, *, raw: bool = False) -> Any:
    """Open a video file with OpenCV's FFmpeg.

    Args:
        path: path of the file, or an `EmbeddedAddress`.
        raw: deliver packets instead of frames.

    Raises:
        DinomedError: the file cannot be opened as a video.
    """
    import cv2

    properties = [cv2.CAP_PROP_FORMAT, -1] if raw else [cv2.CAP_PROP_N_THREADS, 2]
    limits = _EMBEDDED_LIMITS if isinstance(path, EmbeddedAddress) else _LIMITS
    with _lock, environment_variable(_OPTIONS, limits):  # FFmpeg takes its options from there
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, properties)
    if not capture.isOpened():
        raise DinomedError("no video can be read in it: damaged, cut off before its index, or of an unknown codec")
    return capture


def read_packets(path: str) -> PacketIndex | None:
    """Read the index of a file; None if its packets have no time stamps that tell the frames apart (MPEG program
    streams, damaged files).

    Raises:
        DinomedError: the file cannot be opened, or has more than `MAX_FRAMES` frames.
    """
    import cv2

    capture = open_capture(path, raw=True)
    stamps: list[tuple[float, bool]] = []
    samples: dict[float, int] = {}
    every = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) // _SAMPLES, 1)
    try:
        while capture.grab():
            key = capture.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME) != 0
            stamps.append((round(capture.get(cv2.CAP_PROP_POS_MSEC), 3), key))
            if len(stamps) % every == 0 and len(samples) < 2 * _SAMPLES:
                samples[stamps[-1][0]] = zlib.crc32(capture.retrieve()[1].tobytes())
            if len(stamps) > MAX_FRAMES:
                raise DinomedError(f"more than {MAX_FRAMES:,} frames; cut the video into parts")
    finally:
        capture.release()
    stamps.sort()
    times = [time for time, _ in stamps]
    if not times or len(set(times)) < len(times):
        return None
    return PacketIndex(times, [number for number, (_, key) in enumerate(stamps) if key], samples)


def seeks_truly(path: str, index: PacketIndex) -> bool:
    """Return whether seeking leads to the packets that are read in the order of the file, at the samples of `index`.

    AVI has an index apart from its packets, which can be wrong, and time stamps that follow from it.
    """
    import cv2

    capture = open_capture(path, raw=True)
    try:
        for time, checksum in reversed(index.samples.items()):
            capture.set(cv2.CAP_PROP_POS_MSEC, time)
            same = capture.grab() and round(capture.get(cv2.CAP_PROP_POS_MSEC), 3) == time
            if not same or zlib.crc32(capture.retrieve()[1].tobytes()) != checksum:
                return False
    finally:
        capture.release()
    return True
