"""The functions of `dinomed.video.video` that run in a decoding process.

The newest videos stay open between calls; of others the index of their frames is kept, so that a video is read as a
whole once. With DINOMED_DECODE_HERE=1 threads of the program itself call them, one at a time.
"""

import os
import threading
import time
from collections import OrderedDict
from dataclasses import asdict
from typing import Any

import numpy as np

from dinomed.images.decode import UnreadableImage, refusing
from dinomed.images.dicom.codecs import holds_video_stream
from dinomed.images.dicom.elements import is_dicom
from dinomed.isolation.limits import decoding_limits
from dinomed.video.capture_source import CaptureSource
from dinomed.video.dicom_source import DicomSource
from dinomed.video.embedded_source import EmbeddedSource
from dinomed.video.source import DecodingPaused, FrameSource

_OPEN = 2  # videos that stay open
_KEPT, _KEPT_FRAMES = 128, 300_000  # videos whose index is kept, and their frames, of about 150 bytes each
_sources: OrderedDict[tuple[str, int, int], FrameSource] = OrderedDict()  # the newest last
_lock = threading.Lock()  # of `_sources` and of all videos in it


def open_source(path: str) -> FrameSource:
    """Open a video in this process.

    Raises:
        UnreadableImage: the file cannot be read as a video.
    """
    if holds_video_stream(path):
        return EmbeddedSource(path)
    return DicomSource(path) if is_dicom(path) else CaptureSource(path)


def read_facts(path: str) -> tuple[dict[str, Any], None]:
    """Return the facts of a video as JSON types."""
    with _lock:
        return asdict(_source(path).facts), None


def read_frames(path: str, start: int, stop: int, step: int) -> tuple[dict[str, Any], np.ndarray | None]:
    """Read the frames `start`, `start` + `step`, ... below `stop`, as far as the time for one call allows.

    Returns:
        ``facts`` of the video, ``frames`` as (number, time in s), and ``next``, the number from which to continue,
        None after the last frame of the video; and the pixels, uint8 (frames, H, W, 3), None without a frame.
    """
    with _lock:
        return _read_frames(_source(path), start, stop, step)


def _read_frames(source: FrameSource, start: int, stop: int, step: int) -> tuple[dict[str, Any], np.ndarray | None]:
    limit = time.process_time() + decoding_limits().cpu_s / 4
    frames: list[tuple[int, float]] = []
    pixels: list[np.ndarray] = []
    following: int | None = start
    while following is not None and following < stop and not (frames and time.process_time() > limit):
        try:
            frame = source.advance(following, lambda: time.process_time() > limit)
        except DecodingPaused:
            break
        except UnreadableImage:
            if not frames:
                raise
            break  # these frames are returned first; the next call raises it again
        if frame is None:
            following = None
        elif frame.number >= stop or (frame.number - start) % step:  # the wanted one cannot be decoded
            following = start - (start - frame.number) // step * step
        else:
            frames.append((frame.number, frame.time_s))
            pixels.append(frame.pixels)
            following = frame.number + step
    content = {"facts": asdict(source.facts), "frames": frames, "next": following}
    return content, np.stack(pixels) if pixels else None


def _source(path: str) -> FrameSource:
    """Return an open video; one whose file has changed is opened again."""
    with refusing(path):
        status = os.stat(path)
    key = (path, status.st_size, status.st_mtime_ns)
    if key not in _sources:
        for old in [old for old in _sources if not os.path.exists(old[0])]:  # an upload that the demo has removed
            _sources.pop(old).close()
        _sources[key] = open_source(path)
    _sources.move_to_end(key)
    for source in list(_sources.values())[:-_OPEN]:
        source.close()
    while len(_sources) > _OPEN and (
        len(_sources) > _KEPT or sum(source.facts.frames or 0 for source in _sources.values()) > _KEPT_FRAMES
    ):
        _sources.popitem(last=False)
    return _sources[key]
