"""Reading of images from outside in a decoding process."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.images.decode import first_bytes, open_image
from dinomed.images.dicom.frame_times import locate_frame
from dinomed.images.dicom.spacing import FrameSpacings, PixelSpacing, UltrasoundRegion, read_frame_spacings
from dinomed.images.dicom.windows import GrayWindow
from dinomed.images.frames import parse_frame
from dinomed.images.gray_values import GrayValues, has_gray_values, read_gray_values
from dinomed.images.intensity import SEPARATE_CHANNELS, IntensityConfig
from dinomed.images.read import MAX_PIXELS, PLAIN, UnreadableImage, read_image, read_shown
from dinomed.isolation.pool import shared_pool

_PNG = b"\x89PNG\r\n\x1a\n"  # first bytes of a file


def read_image_isolated(
    path: str | Path,
    *,
    channels: int = 3,
    intensity: IntensityConfig = PLAIN,
    max_pixels: int = MAX_PIXELS,
    at_least: int | None = None,
    frame: int = 0,
) -> np.ndarray:
    """Read like `dinomed.images.read.read_image`, in a decoding process with limits on memory and time.

    Raises:
        UnreadableImage: as `read_image`, or the file exceeds a limit.
    """
    if _decodes_itself(path):
        return read_image(path, channels=channels, intensity=intensity, max_pixels=max_pixels)
    return _run("read_pixels", path, channels, intensity.model_dump(mode="json"), max_pixels, at_least, frame)[1]


def read_shown_isolated(
    path: str | Path, channels: int | None, intensity: IntensityConfig, max_pixels: int, frame: int = 0
) -> np.ndarray:
    """Read like `dinomed.images.read.read_shown`, in a decoding process with limits on memory and time.

    Raises:
        UnreadableImage: as `read_shown`, or the file exceeds a limit.
    """
    if _decodes_itself(path):
        return read_shown(path, channels, intensity, max_pixels, frame)
    return _run("shown_pixels", path, channels, intensity.model_dump(mode="json"), max_pixels, frame)[1]


def read_gray_values_isolated(path: str | Path, frame: int, max_pixels: int) -> GrayValues | None:
    """Read like `dinomed.images.gray_values.read_gray_values`, in a decoding process with limits on memory and time.

    Raises:
        UnreadableImage: as `read_gray_values`, or the file exceeds a limit.
    """
    content, codes = _run("gray_values", path, frame, max_pixels)
    if content is None:
        return None
    windows = [GrayWindow(**window) for window in content.pop("windows")]
    return GrayValues(codes=codes, window=GrayWindow(**content.pop("window")), windows=windows, **content)


@dataclass(frozen=True)
class PictureFacts:
    """What a viewer offers for a picture.

    Attributes:
        frames: number of frames.
        seconds: time of the frame, or None if the file states no rate.
        has_values: `read_gray_values_isolated` reads its values.
        separate_channels: its channels are windows or neighbouring slices (`SEPARATE_CHANNELS`), no colours.
    """

    frames: int
    seconds: float | None
    has_values: bool
    separate_channels: bool = False


def read_facts_isolated(path: str | Path, frame: int, max_pixels: int) -> PictureFacts:
    """Read the facts of a picture and of a frame of it, in a decoding process with limits on memory and time.

    Raises:
        UnreadableImage: the header of the file cannot be read, or the file exceeds a limit.
    """
    return PictureFacts(**_run("picture_facts", path, frame, max_pixels)[0])


def read_spacings_isolated(path: str | Path, frame: int = 0) -> FrameSpacings | None:
    """Read like `dinomed.images.dicom.spacing.read_frame_spacings`, of one frame, in a decoding process with limits.

    Raises:
        UnreadableImage: as `read_frame_spacings`, or the file exceeds a limit.
    """
    content = _run("frame_spacings", path, frame)[0]
    if content is None:
        return None
    spacing = None if content["spacing"] is None else PixelSpacing(**content["spacing"])
    regions = [UltrasoundRegion(tuple(box), scale and tuple(scale)) for box, scale in content["regions"]]
    return FrameSpacings([spacing], regions)


def _decodes_itself(path: str | Path) -> bool:
    """Return whether a path is that of a frame of a video, which `read_image` decodes in a process with limits."""
    reference = parse_frame(path)
    return reference is not None and not reference.is_dicom


def _run(name: str, path: str | Path, *arguments: Any) -> tuple[Any, np.ndarray]:
    """Call a function of this module in a decoding process, whose current folder may be another one."""
    answer = shared_pool().run(f"{__name__}:{name}", [[os.path.abspath(path), *arguments]])[0]
    if isinstance(answer, UnreadableImage):
        raise type(answer)(path, answer.reason)
    content, array = answer
    assert array is not None
    return content, array


def read_pixels(
    path: str, channels: int, intensity: dict[str, Any], max_pixels: int, at_least: int | None, frame: int = 0
) -> tuple[None, np.ndarray]:
    """Read an image; for the decoding process."""
    config = IntensityConfig(**intensity)
    return None, read_image(
        path, channels=channels, intensity=config, max_pixels=max_pixels, at_least=at_least, frame=frame
    )


def shown_pixels(
    path: str, channels: int | None, intensity: dict[str, Any], max_pixels: int, frame: int
) -> tuple[None, np.ndarray]:
    """Read an image for display; for the decoding process."""
    return None, read_shown(path, channels, IntensityConfig(**intensity), max_pixels, frame)


def gray_values(path: str, frame: int, max_pixels: int) -> tuple[dict[str, Any] | None, np.ndarray]:
    """Read the values of a gray image, and all but its codes as a dictionary; for the decoding process."""
    values = read_gray_values(path, frame=frame, max_pixels=max_pixels)
    if values is None:
        return None, np.zeros(0, np.uint16)
    content = asdict(values)
    return content, content.pop("codes")


def picture_facts(path: str, frame: int, max_pixels: int) -> tuple[dict[str, Any], np.ndarray]:
    """Read `PictureFacts` as a dictionary; for the decoding process."""
    frames, seconds = locate_frame(path, frame, max_pixels)
    separate = False
    if first_bytes(path, len(_PNG)) == _PNG:
        with open_image(path, max_pixels) as image:
            separate = SEPARATE_CHANNELS in image.info
    return asdict(PictureFacts(frames, seconds, has_gray_values(path, max_pixels), separate)), np.zeros(0)


def frame_spacings(path: str, frame: int) -> tuple[dict[str, Any] | None, np.ndarray]:
    """Read the spacing of a frame and the ultrasound regions as a dictionary; for the decoding process."""
    spacings = read_frame_spacings(path)
    if spacings is None:
        return None, np.zeros(0)
    stated = spacings.stated(frame)
    regions = [(region.box, region.scale) for region in spacings.regions]
    return {"spacing": None if stated is None else asdict(stated), "regions": regions}, np.zeros(0)
