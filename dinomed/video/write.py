"""Writing of videos by OpenCV, complete or not at all: Motion JPEG, which any player reads, or exact gray values."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np

from dinomed.errors import DinomedError
from dinomed.io.files import replacing
from dinomed.video.packets import read_packets

SUFFIX = ".avi"
QUALITY = 95
"""JPEG quality. Masks of 0 and 255 are exact again above 127."""


@contextmanager
def writing_video(
    path: str | Path, size: tuple[int, int], fps: float, *, lossless: bool = False, bits: Literal[8, 16] = 8
) -> Iterator[Callable[[np.ndarray], None]]:
    """Open a video for writing; it appears at `path` after the block, if no error occurred.

    Args:
        path: file that ends in .avi.
        size: (height, width) of the frames, px. An odd side gets a black row or column more: encoders need even ones.
        fps: frames a second.
        lossless: write gray frames as FFV1, whose values are read back as they are; else as Motion JPEG.
        bits: of the gray values; 16 needs `lossless`.

    Yields:
        A function that appends a frame, uint8 RGB ``(H, W, 3)``, or gray ``(H, W)``; with 16 bits uint16 ``(H, W)``.

    Raises:
        DinomedError: the video cannot be written.
    """
    import cv2

    even = size[0] + size[0] % 2, size[1] + size[1] % 2
    with replacing(path) as temporary:
        codec = "FFV1" if lossless else "MJPG"
        code, backends = cv2.VideoWriter.fourcc(*codec), [cv2.CAP_FFMPEG, *([] if lossless else [cv2.CAP_OPENCV_MJPEG])]
        options = [cv2.VIDEOWRITER_PROP_IS_COLOR, int(not lossless)]
        if bits == 16:
            assert lossless, "Motion JPEG has 8 bits"
            options += [cv2.VIDEOWRITER_PROP_DEPTH, cv2.CV_16U]
        writer = next(
            (
                writer
                for backend in backends
                if (writer := cv2.VideoWriter(str(temporary), backend, code, fps, even[::-1], options)).isOpened()
            ),
            None,
        )
        if writer is None:
            raise DinomedError(f"cannot write {path}: OpenCV cannot encode {codec} of {size[1]}x{size[0]} px")
        writer.set(cv2.VIDEOWRITER_PROP_QUALITY, QUALITY)
        count = 0

        def append(frame: np.ndarray) -> None:
            nonlocal count
            assert frame.shape[:2] == size, (frame.shape, size)
            assert frame.ndim == 2 or not lossless, frame.shape
            assert frame.dtype == (np.uint16 if bits == 16 else np.uint8), frame.dtype
            whole = np.zeros(even if lossless else (*even, 3), frame.dtype)
            colour = cv2.COLOR_GRAY2BGR if frame.ndim == 2 else cv2.COLOR_RGB2BGR
            whole[: size[0], : size[1]] = frame if lossless else cv2.cvtColor(frame, colour)
            writer.write(whole)
            count += 1

        try:
            yield append
        finally:
            writer.release()
        index = read_packets(str(temporary))  # OpenCV reports no full disk
        if index is None or len(index.times_ms) != count:
            raise DinomedError(f"cannot write {path}: the file is not complete; is the disk full?")
