"""Depth maps: 16-bit gray images or NumPy arrays whose values times a scale are distances."""

from pathlib import Path

import numpy as np
from PIL import Image

from dinomed.errors import DinomedError, first_line
from dinomed.images.arrays import NPY_MAGIC
from dinomed.images.bounds.containers import too_large
from dinomed.images.decode import MAX_PIXELS, first_bytes, header_of, open_image, reads_file, upright_of
from dinomed.images.intensity import is_wide, samples
from dinomed.images.read import MaskSizeError, UnreadableImage
from dinomed.io.files import replacing


@reads_file
def read_depth(
    path: str | Path, scale: float = 1.0, *, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Read a depth map: float32 ``(H, W)``, the stored values times `scale`; nan where the depth is unknown.

    Values of 0, negative values and values that are not finite count as unknown.

    Args:
        scale: length units per stored value. SimCol3D stores depths up to 20 cm as value / 256 / 255 * 20: 20 / 65280.
        size: ``(height, width)`` that the map must have.

    Raises:
        MaskSizeError: the map has another size.
        UnreadableImage: the map cannot be read, has colours, or is a JPEG (lossy).
    """
    values = _from_array(path, max_pixels) if first_bytes(path, 6) == NPY_MAGIC else _from_picture(path, max_pixels)
    if size is not None and values.shape != size:
        raise MaskSizeError(
            path,
            f"the depth map is {values.shape[1]}x{values.shape[0]}, its image {size[1]}x{size[0]} (width x height)",
        )
    depth = (values.astype(np.float64) * scale).astype(np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(np.nan))


def write_depth(path: str | Path, depth: np.ndarray, scale: float) -> None:
    """Write ``(H, W)`` as a 16-bit gray PNG of rounded depth / scale; nan becomes 0, known depths at least 1."""
    with replacing(path) as temporary:
        Image.fromarray(depth_levels(depth, scale)).save(temporary, format="PNG")


def depth_levels(depth: np.ndarray, scale: float) -> np.ndarray:
    """Return the stored values of a depth map ``(H, W)``, uint16: rounded depth / scale, 0 for nan, else at least 1."""
    assert depth.ndim == 2, depth.shape
    known = np.isfinite(depth)
    levels = np.clip(np.rint(np.where(known, depth, 0) / scale), 1, 65535)
    return np.where(known, levels, 0).astype(np.uint16)


def _from_picture(path: str | Path, max_pixels: int) -> np.ndarray:
    with open_image(path, max_pixels) as image:
        if header_of(image).format == "JPEG":
            raise DinomedError("a JPEG cannot be a depth map, since its compression is lossy; use PNG or .npy")
        if not is_wide(image) and image.mode != "L":
            raise DinomedError(f"mode {image.mode}; a depth map is a 16-bit gray image, or an array in a .npy file")
        return upright_of(image, samples(image) if is_wide(image) else np.asarray(image))


def _from_array(path: str | Path, max_pixels: int) -> np.ndarray:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UnreadableImage(path, f"damaged ({first_line(error)})") from None
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 or not values.size or values.dtype.kind not in "uif":
        raise UnreadableImage(
            path, f"{values.dtype.name} of shape {values.shape}; a depth map is an array of numbers (H, W)"
        )
    if values.size > max_pixels:
        raise UnreadableImage(path, too_large(values.size, max_pixels))
    return np.asarray(values)
