"""Frames of videos as images: ``videos/a.mp4/frame_000120`` is frame 120 of the video ``videos/a.mp4``.

A file holds no files, so that no other image can have such a path. A frame is read as its PNG file by `dinomed frames`
would be. Frames of DICOM files are read with the intensity settings, as single images are.
"""

import hashlib
import os
import re
import threading
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import numpy as np

from dinomed.images.decode import MAX_PIXELS, Header, UnreadableImage
from dinomed.images.dicom.codecs import holds_video_stream
from dinomed.images.dicom.elements import is_dicom
from dinomed.images.dicom.pixels import read_dicom
from dinomed.images.intensity import IntensityConfig

_NAME = re.compile(r"frame_(\d{6,9})")
_READER = "dinomed.video.images"  # imported late: videos are built on images
_newest = threading.local()  # the frame that a thread has read last: it is checked, and then used


@dataclass(frozen=True)
class FrameReference:
    """Frame `number`, from 0 in the order of display, of the video file `video`."""

    video: str
    number: int

    @property
    def is_dicom(self) -> bool:
        """Whether the video is a DICOM file of single frames; one that holds a video stream is read as a video."""
        return is_dicom(self.video) and not holds_video_stream(self.video)


def frame_path(video: str, number: int) -> str:
    """Return the path of a frame.

    >>> frame_path("videos/a.mp4", 120)
    'videos/a.mp4/frame_000120'
    """
    return f"{video}/frame_{number:06}"


def parse_frame(path: str | Path) -> FrameReference | None:
    """Return the frame that a path names; None for the path of a file."""
    video, name = os.path.split(path)
    match = _NAME.fullmatch(name)
    if match is None or not video or os.path.isdir(video):
        return None
    return FrameReference(video, int(match[1]))


def image_file(path: str | Path) -> Path:
    """Return the file that holds an image: the video of a frame, or `path` itself."""
    frame = parse_frame(path)
    return Path(path if frame is None else frame.video)


def read_frame(
    path: str | Path, frame: FrameReference, intensity: IntensityConfig, max_pixels: int = MAX_PIXELS
) -> tuple[Header, np.ndarray]:
    """Read a frame and its header.

    Args:
        path: path of the frame, for messages.
        frame: the frame.
        intensity: bit depth and range, of a DICOM frame.
        max_pixels: largest number of pixels.

    Returns:
        The header of the frame, and its pixels, uint8 RGB ``(H, W, 3)``; of a DICOM frame ``(H, W, 1 or 3)`` as of
        `dinomed.images.dicom.pixels.DicomFrames.read`.

    Raises:
        UnreadableImage: the video or the frame cannot be read.
    """
    try:
        if not os.path.isfile(frame.video):
            raise UnreadableImage(path, f"its video {frame.video} does not exist")
        if frame.is_dicom:
            header, pixels = read_dicom(frame.video, intensity, max_pixels, frame.number)
            return replace(header, frames=1), pixels
        status = os.stat(frame.video)
        key = (frame, status.st_size, status.st_mtime_ns, max_pixels)
        if getattr(_newest, "key", None) != key:
            _newest.key, _newest.frame = None, import_module(_READER).read_video_frame(frame, max_pixels)
            _newest.key = key
        header, pixels = _newest.frame
        return header, pixels.copy()
    except UnreadableImage as error:
        raise type(error)(path, error.reason) from None


def forget_frame() -> None:
    """Free the frame that this thread has read last, which is kept for the next call."""
    vars(_newest).clear()


def frame_digest(pixels: np.ndarray) -> str:
    """Return the SHA-256 of the size and the values of a frame, in hexadecimal digits."""
    digest = hashlib.sha256("x".join(map(str, pixels.shape)).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
