"""Reading and writing of images and masks as upright arrays; the format is detected from the content of the file."""

from pathlib import Path

import numpy as np
from PIL import Image

from dinomed.errors import DinomedError
from dinomed.images.arrays import is_array, read_array, read_array_header
from dinomed.images.binary import to_mask
from dinomed.images.decode import (
    MAX_PIXELS,
    Header,
    UnreadableImage,
    header_of,
    is_of_data_worker,
    open_image,
    reads_file,
    upright,
    upright_of,
)
from dinomed.images.deep import read_deep_colour
from dinomed.images.dicom.elements import is_dicom
from dinomed.images.dicom.pixels import read_dicom, read_dicom_header
from dinomed.images.dicom.segmentation import read_segmentation
from dinomed.images.frames import FrameReference, parse_frame, read_frame
from dinomed.images.intensity import IntensityConfig, match_channels, refuse_hidden, to_channels, to_range, to_samples
from dinomed.io.files import replacing

__all__ = [
    "MAX_PIXELS",
    "Header",
    "IntensityConfig",
    "MaskSizeError",
    "UnreadableImage",
    "read_header",
    "read_image",
    "read_image_and_header",
    "read_mask",
    "read_shown",
    "read_whole",
    "write_mask",
]


class MaskSizeError(UnreadableImage):
    """A mask or map with another size than its image."""


PLAIN = IntensityConfig()


@reads_file
def read_header(path: str | Path, max_pixels: int = MAX_PIXELS) -> Header:
    """Read size, mode and format. Only a PNG that stores EXIF or XMP after its pixels is decoded.

    Raises:
        UnreadableImage: as in `read_image`; damaged pixels are not detected.
    """
    if (reference := parse_frame(path)) is not None:
        return read_frame(path, reference, PLAIN, max_pixels)[0]
    if is_array(path):
        return read_array_header(path, max_pixels)
    if is_dicom(path):
        return read_dicom_header(path, max_pixels)
    with open_image(path, max_pixels) as image:
        return header_of(image)


@reads_file
def read_image(
    path: str | Path,
    *,
    channels: int = 3,
    intensity: IntensityConfig = PLAIN,
    at_least: int | None = None,
    max_pixels: int = MAX_PIXELS,
    frame: int = 0,
) -> np.ndarray:
    """Read a JPEG, PNG, TIFF, BMP, WebP, GIF or DICOM file, a NumPy array, or a frame of a video: ``(H, W, channels)``.

    uint8 in 0 to 255; with ``IntensityConfig(bits=16)`` float32 in 0 to 1.

    The result is upright: EXIF orientation is applied. CMYK and palette images are converted to RGB. Transparent pixels
    are blended with black. Values of more than 8 bits are scaled (`dinomed.images.intensity`; DICOM by its window, see
    `dinomed.images.dicom.pixels`). With 1 or 3 channels, the first frame or page is read. With any other number of
    channels, they are the gray pages or the bands of a TIFF, or the channels of an array. `dinomed.images.frames`
    describes the path of a frame of a video.

    Args:
        channels: 3 (RGB; gray is repeated), 1 (luma), or the number of channels of the file (gray is repeated).
        intensity: bit depth and range.
        at_least: smallest allowed area, px. A JPEG is decoded at a half, a quarter or an eighth of its sides, which is
            faster and averages over blocks, if the result has at least this area. None decodes at full size.
        max_pixels: largest number of pixels.
        frame: number of the frame of a DICOM image, from 0; other files have the frame 0 only.

    Raises:
        UnreadableImage: the file is missing, truncated, damaged or not an image, it has no such frame, its number of
            channels differs, its value range is unknown, or it has more than `max_pixels` pixels (checked before
            decoding).
    """
    return read_image_and_header(
        path, channels=channels, intensity=intensity, at_least=at_least, max_pixels=max_pixels, frame=frame
    )[1]


@reads_file
def read_image_and_header(
    path: str | Path,
    *,
    channels: int = 3,
    intensity: IntensityConfig = PLAIN,
    at_least: int | None = None,
    max_pixels: int = MAX_PIXELS,
    frame: int = 0,
) -> tuple[Header, np.ndarray]:
    """Read like `read_image`, and return the header too."""
    if (reference := parse_frame(path)) is not None:
        return _read_frame(path, reference, channels, intensity, max_pixels)
    if not is_array(path) and is_dicom(path):
        header, shown = read_dicom(path, intensity, max_pixels, frame)
        return header, _match(path, shown, channels)
    if frame != 0:
        raise UnreadableImage(path, f"has no frame {frame}: only frames of DICOM images are read")
    if is_array(path):
        header, values = read_array(path, max_pixels)
        return header, _finish(path, values, channels, intensity)
    with open_image(path, max_pixels) as image:
        header = header_of(image)
        if intensity.is_plain and channels in (1, 3):
            if at_least is not None:
                _reduce(image, at_least)
            pixels = to_channels(image, channels)
            # Pillow keeps the upper 8 of 16 bits; colours over transparency, or of CMYK, may be dark as they are
            if image.mode == "RGB" and header.bits > 8 and pixels.max() < 64:
                scaled = _scale_colour(path, image, channels)
                if scaled is not None:
                    return header, np.ascontiguousarray(upright(scaled, header.orientation))
            return header, upright_of(image, pixels)
        if not intensity.is_plain and header.channels == 3 and header.bits > 8:
            refuse_hidden(image)
            pixels = _finish(path, read_deep_colour(path, image), channels, intensity)
            return header, np.ascontiguousarray(upright(pixels, header.orientation))  # Pillow turns only its own TIFF
        return header, upright_of(image, _finish(path, to_samples(image, channels), channels, intensity))


@reads_file
def read_whole(path: str | Path, max_pixels: int = MAX_PIXELS) -> Header:
    """Decode all pixels and channels of an image to detect damage, and return its header.

    Raises:
        UnreadableImage: the image cannot be read.
    """
    if is_array(path):
        return read_array(path, max_pixels)[0]
    header, _ = read_image_and_header(path, max_pixels=max_pixels)
    if header.channels not in (1, 3):
        with open_image(path, max_pixels) as image:
            to_samples(image, header.channels)
    return header


def read_shown(
    path: str | Path, channels: int | None, intensity: IntensityConfig, max_pixels: int = MAX_PIXELS, frame: int = 0
) -> np.ndarray:
    """Read an image for display, uint8 (H, W, 3): in colour, or else the first of its `channels` in gray.

    `channels` None is the number of channels of the file. `frame` is as of `read_image`.

    Raises:
        UnreadableImage: the file cannot be read in colour or with `channels` channels.
    """
    try:
        return read_image(path, max_pixels=max_pixels, frame=frame)
    except UnreadableImage:
        channels = read_header(path, max_pixels).channels if channels is None else channels
        first = read_image(path, channels=channels, intensity=intensity, max_pixels=max_pixels, frame=frame)[..., :1]
    gray = first if first.dtype == np.uint8 else (first * 255).round().astype(np.uint8)
    return np.repeat(gray, 3, axis=2)


def _read_frame(
    path: str | Path, reference: FrameReference, channels: int, intensity: IntensityConfig, max_pixels: int
) -> tuple[Header, np.ndarray]:
    """Read a frame as its PNG file would be read; a DICOM frame as a DICOM file."""
    header, pixels = read_frame(path, reference, intensity, max_pixels)
    if reference.is_dicom:
        return header, _match(path, pixels, channels)
    image = Image.fromarray(pixels)
    if intensity.is_plain and channels in (1, 3):
        return header, to_channels(image, channels)
    return header, _finish(path, to_samples(image, channels), channels, intensity)


def _reduce(image: Image.Image, at_least: int) -> None:
    """Select the smallest decoding scale of a JPEG whose area is `at_least` px; no effect on other formats."""
    width, height = image.size
    for scale in (8, 4, 2):
        if (width // scale) * (height // scale) >= at_least:
            image.draft(None, (width // scale, height // scale))
            return


def _scale_colour(path: str | Path, image: Image.Image, channels: int) -> np.ndarray | None:
    """Read 16-bit colour of which at most 14 bits are used, as uint8, without its orientation.

    The range is that of `scale_to_uint8`, as of gray images. None if only Pillow can decode the file.
    """
    try:
        return match_channels(to_range(read_deep_colour(path, image), PLAIN), channels)
    except Exception as error:  # decoders raise errors of many types; Pillow has decoded the file already
        if is_of_data_worker(error):
            raise
        return None


def _finish(path: str | Path, values: np.ndarray, channels: int, intensity: IntensityConfig) -> np.ndarray:
    try:
        return match_channels(to_range(values, intensity), channels)
    except DinomedError as error:
        raise UnreadableImage(path, str(error)) from None


def _match(path: str | Path, shown: np.ndarray, channels: int) -> np.ndarray:
    try:
        return match_channels(shown, channels)
    except DinomedError as error:
        raise UnreadableImage(path, str(error)) from None


@reads_file
def read_mask(path: str | Path, *, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a binary mask: uint8 ``(H, W)`` of 0 and 1, with EXIF orientation applied (see `dinomed.images.binary`).

    Of a DICOM segmentation of one plane, 1 is where any of its segments is.

    Args:
        size: ``(height, width)`` that the mask must have.

    Raises:
        MaskSizeError: the mask has another size.
        UnreadableImage: as in `read_image`, or the values are not the values of a binary mask.
    """
    if is_dicom(path):
        mask = read_segmentation(path, max_pixels).mask()
        check_mask_size(path, mask.shape, size)
        return mask
    with open_image(path, max_pixels) as image:
        header = header_of(image)
        check_mask_size(path, (header.height, header.width), size)
        return upright_of(image, to_mask(image))


def check_mask_size(path: str | Path, shape: tuple[int, ...], size: tuple[int, int] | None) -> None:
    """Raise a `MaskSizeError` if a mask of ``shape`` (H, W) has another size than its image; None fits every mask."""
    if size is not None and shape != size:
        raise MaskSizeError(path, f"the mask is {shape[1]}x{shape[0]}, its image {size[1]}x{size[0]} (width x height)")


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write a mask ``(H, W)`` of 0 and 1 (or bool) as PNG with 0 and 255."""
    assert mask.ndim == 2, mask.shape
    assert mask.max(initial=0) <= 1, mask.max()
    with replacing(path) as temporary:
        Image.fromarray((mask > 0).astype(np.uint8) * 255).save(temporary, format="PNG")
