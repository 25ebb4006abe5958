"""Times of the frames of a multi-frame DICOM image."""

from pathlib import Path
from typing import Any

from dinomed.images.decode import MAX_PIXELS
from dinomed.images.dicom.elements import is_dicom, read_header, reading_dicom
from dinomed.images.dicom.pixels import read_dicom_header

_MAX_FRAMES = 4_000_000  # of a video; a header may state more


def locate_frame(path: str | Path, frame: int, max_pixels: int = MAX_PIXELS) -> tuple[int, float | None]:
    """Return the number of frames of a file, and the time of a frame in s; None if the file states no rate.

    Files that are not DICOM have one frame.

    Raises:
        UnreadableImage: the file is a damaged DICOM.
    """
    if not is_dicom(path):
        return 1, None
    frames = read_dicom_header(path, max_pixels).frames
    steps_ms = read_frame_times(path, frames) if frames > 1 else []
    return frames, sum(steps_ms[1 : frame + 1]) / 1000 if steps_ms else None


def read_frame_times(path: str | Path, frames: int | None) -> list[float]:
    """Return for each frame the time since the frame before it, in ms (PS3.3, C.7.6.5); empty if no rate is stated.

    Args:
        path: the file.
        frames: its number of frames by its header; None if it is not known, then the result may be of fewer frames.

    Returns:
        A value for each frame, at most 4 million.

    Raises:
        UnreadableImage: the file is a damaged DICOM.
    """
    tags: list[Any] = ["FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate"]
    with reading_dicom(path) as file:
        elements = read_header(file, tags)
        vector = [float(step) for step in elements.get("FrameTimeVector") or []]
        if len(vector) == (frames or len(vector)) and min(vector[1:], default=0) > 0:
            return vector
        step = float(elements.get("FrameTime") or 0)
        rate = float(elements.get("CineRate") or elements.get("RecommendedDisplayFrameRate") or 0)
    step = step if step > 0 else 1000 / rate if rate > 0 else 0.0
    return [step] * min(frames or 1, _MAX_FRAMES) if step else []
