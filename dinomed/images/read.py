"""Reading pictures and masks, whatever their file is called, as arrays in one orientation and range."""

from pathlib import Path

import numpy as np
from PIL import Image

from dinomed.files import replacing
from dinomed.images.binary import to_mask
from dinomed.images.decode import MAX_PIXELS, Header, UnreadableImage, header_of, open_image, upright_of
from dinomed.images.intensity import to_channels

__all__ = [
    "MAX_PIXELS",
    "Header",
    "MaskSizeError",
    "UnreadableImage",
    "read_header",
    "read_image",
    "read_image_and_header",
    "read_mask",
    "write_mask",
]


class MaskSizeError(UnreadableImage):
    """A mask of another size than its image."""


def read_header(path: str | Path, max_pixels: int = MAX_PIXELS) -> Header:
    """Size, mode and format without decoding (a PNG without EXIF in front is decoded to look for it behind)."""
    with open_image(path, max_pixels) as image:
        return header_of(image)


def read_image(path: str | Path, *, channels: int = 3, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a JPEG, PNG, TIFF, BMP, WebP or GIF file: uint8 ``(H, W, channels)``, 0-255, upright.

    EXIF orientation is applied; CMYK and palettes become RGB; transparency is laid over black; more than 8 bits are
    scaled (`dinomed.images.intensity.scale_to_uint8`); of an animation or several pages the first is taken.

    Args:
        channels: 3 (RGB; gray is repeated) or 1 (luma).

    Raises:
        UnreadableImage: missing, cut off, damaged, no image, floating-point, or more than `max_pixels` pixels (found
            in the header, before memory is used).
    """
    return read_image_and_header(path, channels=channels, max_pixels=max_pixels)[1]


def read_image_and_header(
    path: str | Path, *, channels: int = 3, max_pixels: int = MAX_PIXELS
) -> tuple[Header, np.ndarray]:
    """As `read_image`, with the header; for those who record both."""
    assert channels in (1, 3), channels
    with open_image(path, max_pixels) as image:
        header = header_of(image)
        return header, upright_of(image, to_channels(image, channels))


def read_mask(path: str | Path, *, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a binary mask: uint8 ``(H, W)`` of 0 and 1, upright; the rule is in `dinomed.images.binary`.

    Args:
        size: ``(height, width)`` that the mask must have.

    Raises:
        MaskSizeError: of another size.
        UnreadableImage: as `read_image`, or its values are not those of a mask.
    """
    with open_image(path, max_pixels) as image:
        header = header_of(image)
        if size is not None and size != (header.height, header.width):
            raise MaskSizeError(
                path, f"the mask is {header.width}x{header.height}, its image {size[1]}x{size[0]} (width x height)"
            )
        return upright_of(image, to_mask(image))


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write a mask ``(H, W)`` of 0 and 1 (or bool) as PNG with 0 and 255."""
    assert mask.ndim == 2, mask.shape
    assert mask.max(initial=0) <= 1, mask.max()
    with replacing(path) as temporary:
        Image.fromarray((mask > 0).astype(np.uint8) * 255).save(temporary, format="PNG")
