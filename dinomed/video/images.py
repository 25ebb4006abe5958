"""Frames of videos for the reader of images (`dinomed.images.frames`)."""

import numpy as np

from dinomed.images.bounds.containers import too_large
from dinomed.images.decode import Header, UnreadableImage
from dinomed.images.frames import FrameReference
from dinomed.video.facts import VideoFacts
from dinomed.video.video import Video


def read_video_frame(frame: FrameReference, max_pixels: int) -> tuple[Header, np.ndarray]:
    """Read a frame of a video file, uint8 RGB ``(H, W, 3)``, and its header.

    The decoding process keeps the newest videos open, so that a following frame is decoded from where the last one
    ended. A data worker has decoding processes of its own (`dinomed.isolation.pool.shared_pool`).

    Raises:
        UnreadableImage: the video or the frame cannot be read.
    """
    video = Video(frame.video)
    if video.facts.width * video.facts.height > max_pixels:
        raise UnreadableImage(frame.video, too_large(video.facts.width * video.facts.height, max_pixels))
    try:
        pixels = video.read(frame.number).pixels
    except UnreadableImage as error:
        lost = video.facts.problem
        raise type(error)(frame.video, error.reason if lost is None else f"{error.reason}; {lost}") from None
    return frame_header(video.facts), pixels


def frame_header(facts: VideoFacts) -> Header:
    """Return the header of a frame of a video file."""
    return Header(facts.width, facts.height, "RGB", facts.container, 1, channels=3, bits=8)
