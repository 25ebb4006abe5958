"""Label maps: images whose pixel values are class numbers. The stored values are returned without scaling."""

from pathlib import Path

import numpy as np
from PIL import Image

from dinomed.errors import DinomedError
from dinomed.images.arrays import is_array, read_array
from dinomed.images.binary import refuse_hidden_shape
from dinomed.images.decode import MAX_PIXELS, header_of, open_image, reads_file, upright_of
from dinomed.images.dicom.elements import is_dicom
from dinomed.images.dicom.segmentation import read_segmentation
from dinomed.images.intensity import is_wide, samples
from dinomed.images.read import UnreadableImage, check_mask_size
from dinomed.io.files import replacing


@reads_file
def read_label_map(
    path: str | Path, *, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Read the value of each pixel: int64 ``(H, W)``, with EXIF orientation applied.

    The values are gray levels of any bit depth, palette indices, 0 and 1 of a bitmap, the values of an array
    ``(H, W, 1)``, or the numbers of the segments of a DICOM segmentation of one plane.

    Args:
        size: ``(height, width)`` that the map must have.

    Raises:
        MaskSizeError: the map has another size.
        UnreadableImage: the map cannot be read, has colours or values that are not integers, or is a JPEG (lossy
            compression creates values between the classes).
    """
    if is_array(path):
        values = _from_array(path, max_pixels)
    elif is_dicom(path):
        values = read_segmentation(path, max_pixels).label_map()
    else:
        values = _from_picture(path, max_pixels)
    check_mask_size(path, values.shape, size)
    return values


def write_label_map(path: str | Path, labels: np.ndarray) -> None:
    """Write values ``(H, W)`` in 0 to 65535 as a gray PNG: 8 bits if all values are below 256, else 16 bits."""
    assert labels.ndim == 2, labels.shape
    assert 0 <= labels.min(initial=0) <= labels.max(initial=0) < 2**16
    dtype = np.uint8 if labels.max(initial=0) < 256 else np.uint16
    with replacing(path) as temporary:
        Image.fromarray(labels.astype(dtype)).save(temporary, format="PNG")


def _from_array(path: str | Path, max_pixels: int) -> np.ndarray:
    values = read_array(path, max_pixels)[1]
    if values.shape[2] != 1:
        raise UnreadableImage(path, f"{values.shape[2]} channels; a label map has one value per pixel")
    return _to_integers(path, values[..., 0])


def _from_picture(path: str | Path, max_pixels: int) -> np.ndarray:
    with open_image(path, max_pixels) as image:
        if header_of(image).format == "JPEG":
            raise DinomedError(
                "a JPEG cannot be a label map, because its compression creates values between the classes; use PNG"
            )
        if image.mode == "1":
            values = np.asarray(image).astype(np.int64)
        elif is_wide(image):
            values = samples(image)
        elif image.mode in ("L", "P"):
            values = np.asarray(image)
        else:
            pixels = np.asarray(image.convert("RGB"))
            if (pixels != pixels[..., :1]).any():
                raise DinomedError("the image has colours; a label map has one value per pixel (gray or palette)")
            values = pixels[..., 0]
        refuse_hidden_shape(image, values)
        return _to_integers(path, upright_of(image, values))


def _to_integers(path: str | Path, values: np.ndarray) -> np.ndarray:
    integers = values.astype(np.int64)
    if values.dtype.kind == "f" and (integers != values).any():
        raise UnreadableImage(path, "some values are not integers; the values of a label map must be integers")
    return integers
