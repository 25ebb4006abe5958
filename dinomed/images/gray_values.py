"""Values of a gray image in the unit of its file, for a viewer that chooses the window itself."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dinomed.images.arrays import is_array
from dinomed.images.decode import MAX_PIXELS, open_image, reads_file, upright_of
from dinomed.images.dicom.elements import is_dicom
from dinomed.images.dicom.pixels import DicomFrames, DicomValues, read_dicom_header
from dinomed.images.dicom.windows import GrayWindow
from dinomed.images.intensity import IntensityConfig, full_range, is_wide, samples

MAX_SIDE = 2048
"""Longer side of the values, px; larger images are reduced by means of areas."""
MAX_CODE = 65535


@dataclass(frozen=True)
class GrayValues:
    """The values of a gray image, in 16 bits.

    Attributes:
        codes: uint16 (H, W); 0 is padding, and k > 0 stands for the value ``low + (k - 1) * step``.
        low, step: in the unit of the file. Whole numbers in a range below 65,535 are exact.
        window: the window in which the image is shown at first.
        has_curve: the image is shown by a VOI LUT at first, not by `window`.
        windows: those of the file.
        unit: such as HU; "" if the file states none.
        inverted: low values are bright.
    """

    codes: np.ndarray
    low: float
    step: float
    window: GrayWindow
    has_curve: bool
    windows: list[GrayWindow]
    unit: str
    inverted: bool


@reads_file
def has_gray_values(path: str | Path, max_pixels: int = MAX_PIXELS) -> bool:
    """Return whether a file is of a kind that `read_gray_values` reads; only its header is read.

    Raises:
        UnreadableImage: as `dinomed.images.read.read_header`.
    """
    if is_array(path):
        return False
    if is_dicom(path):
        return read_dicom_header(path, max_pixels).channels == 1
    with open_image(path, max_pixels) as image:
        return is_wide(image) and image.mode != "F"


@reads_file
def read_gray_values(
    path: str | Path, *, frame: int = 0, max_side: int = MAX_SIDE, max_pixels: int = MAX_PIXELS
) -> GrayValues | None:
    """Read the values of a gray DICOM image, or of a gray PNG or TIFF of 16-bit or 32-bit integers, upright.

    Args:
        path: the file.
        frame: number of the frame of a DICOM image, from 0.
        max_side: largest longer side of the result, px.
        max_pixels: largest number of pixels of the image.

    Returns:
        None for every other image, for values that are not finite, and for a frame that is all padding.

    Raises:
        UnreadableImage: as `dinomed.images.read.read_image`.
    """
    if is_array(path):
        return None
    if is_dicom(path):
        values = DicomFrames(path, IntensityConfig(), max_pixels).read_values(frame)
        return None if values is None else _encode(values, max_side)
    with open_image(path, max_pixels) as image:
        if not is_wide(image):
            return None
        stored = samples(image)
        if stored.dtype.kind == "f":
            return None
        low, high = full_range(stored)
        window = GrayWindow((low + high) / 2, high - low)
        return _encode(DicomValues(upright_of(image, stored), None, window, False, [], "", False), max_side)


def _encode(image: DicomValues, max_side: int) -> GrayValues | None:
    values = image.values.astype(np.float64)
    inside = np.ones(values.shape, bool) if image.padding is None else ~image.padding
    if not inside.any() or not np.isfinite(values[inside].astype(np.float32)).all():
        return None
    least = float(values[inside].min())
    values, inside = _reduce((values - least).astype(np.float32), inside, max_side)
    low, high = float(values[inside].min()), float(values[inside].max())
    is_exact = high - low < MAX_CODE and bool((values[inside] == np.rint(values[inside])).all())
    step = 1.0 if is_exact else max((high - low) / (MAX_CODE - 1), 1e-12)
    codes = np.where(inside, 1 + np.rint((values.astype(np.float64) - low) / step), 0)
    return GrayValues(
        codes.clip(0, MAX_CODE).astype(np.uint16), least + low, step, image.window, image.has_curve, image.windows,
        image.unit, image.inverted,
    )  # fmt: skip


def _reduce(values: np.ndarray, inside: np.ndarray, max_side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return values and mask, (H, W), with at most `max_side` px: means of areas, without padding."""
    scale = max_side / max(values.shape)
    if scale >= 1:
        return values, inside
    size = (max(1, round(values.shape[1] * scale)), max(1, round(values.shape[0] * scale)))
    sums, shares = (
        np.asarray(Image.fromarray(part.astype(np.float32)).resize(size, Image.Resampling.BOX))
        for part in (np.where(inside, values, 0), inside)
    )
    kept = shares >= 0.5
    return np.where(kept, sums / np.maximum(shares, 1e-6), 0).astype(np.float32), kept
