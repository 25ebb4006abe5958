"""DICOM pictures: the first frame, in the values of its modality (Hounsfield units of CT), by the window it names.

What becomes black and white is the `window` or the `percentiles` of the `IntensityConfig`; without either the first
window (or VOI LUT) of the file; where it has none, all of 8 bits, and the percentiles 0.5 and 99.5 of more. MONOCHROME1
is turned, so that bone is bright; palettes and YBR become RGB. Compressed pixels are decoded by pydicom with Pillow
(JPEG, JPEG 2000) or alone (RLE); JPEG-LS and lossless JPEG need a codec beside it.

Only the elements that say what the pixels mean are read. No value of any other, and no text of pydicom's that might
quote one, gets into a message: a file tells who its patient is.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.errors import DinomedError
from dinomed.images.decode import (
    MAX_PIXELS,
    Header,
    UnreadableImage,
    first_bytes,
    open_regular,
    quiet_pillow,
    too_large,
)
from dinomed.images.intensity import IntensityConfig, to_range

FALLBACK = (0.5, 99.5)
"""Percentiles of a picture that names no window."""
_TAGS = [
    "SOPClassUID", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept",
    "RescaleType", "ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
_SEGMENTATION = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")


def is_dicom(path: str | Path) -> bool:
    """Whether a file is DICOM, by content (its preamble)."""
    return first_bytes(path, 132)[128:] == b"DICM"


def read_dicom_header(path: str | Path, max_pixels: int = MAX_PIXELS) -> Header:
    """The header without decoding; its mode is the photometric interpretation, its bits those stored.

    Raises:
        UnreadableImage: as `read_dicom`, but for what is found in decoding only.
    """
    return _header(path, _read_elements(path, max_pixels))


def read_dicom(path: str | Path, intensity: IntensityConfig, max_pixels: int = MAX_PIXELS) -> tuple[Header, np.ndarray]:
    """The header, and the first frame ``(H, W, 1 or 3)``: uint8, or float32 in 0 to 1 with 16 bits.

    Raises:
        UnreadableImage: damaged, cut off, without pixels, a segmentation, too large, in need of a codec, or its values
            have no range.
    """
    from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

    elements = _read_elements(path, max_pixels)
    header = _header(path, elements)
    try:
        with quiet_pillow, open(path, "rb", opener=open_regular) as file:
            stored = pixel_array(file, index=0)
        if header.mode == "PALETTE COLOR":
            return header, to_range(apply_color_lut(stored, elements), intensity)
        if header.channels == 3:
            return header, to_range(stored, intensity)
        values, rule = _windowed(apply_modality_lut(stored, elements), elements, intensity)
        shown = to_range(values[..., None], rule)
    except DinomedError as error:
        raise UnreadableImage(path, str(error)) from None
    except Exception as error:  # pydicom raises nearly anything, and may quote what it read
        raise UnreadableImage(path, _reason(error, path)) from None
    if header.mode == "MONOCHROME1":
        shown = (255 if shown.dtype == np.uint8 else np.float32(1)) - shown
    return header, shown


def _read_elements(path: str | Path, max_pixels: int) -> Any:
    """The elements of `_TAGS`; those of an enhanced picture's first frame in the place of a plain one's."""
    from pydicom import config, dcmread

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it quotes values that it finds odd
    config.settings.reading_validation_mode = config.IGNORE
    try:
        with quiet_pillow, open(path, "rb", opener=open_regular) as file:
            elements = dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
            for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
                for group in (elements.get(groups) or [])[:1]:
                    for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                        for found in (group.get(name) or [])[:1]:
                            elements.update(found)
            rows, columns = int(elements.get("Rows") or 0), int(elements.get("Columns") or 0)
            kind = str(elements.get("SOPClassUID", ""))
    except OSError as error:
        raise UnreadableImage(path, (error.strerror or "cannot be read").lower()) from None
    except Exception:  # as in `read_dicom`: nearly anything, and with what it read
        raise UnreadableImage(path, "damaged or truncated DICOM") from None
    if kind in _SEGMENTATION:
        raise UnreadableImage(path, "a DICOM segmentation, which is no picture")
    if not rows or not columns:
        raise UnreadableImage(path, "DICOM without pixels")
    if rows * columns > max_pixels:
        raise UnreadableImage(path, too_large(rows * columns, max_pixels))
    return elements


def _header(path: str | Path, elements: Any) -> Header:
    try:
        mode = str(elements.get("PhotometricInterpretation", "MONOCHROME2"))
        colour = int(elements.get("SamplesPerPixel", 1)) == 3 or mode == "PALETTE COLOR"
        frames = int(elements.get("NumberOfFrames") or 1)
        bits = int(elements.get("BitsStored") or elements.get("BitsAllocated") or 8)
        if mode == "PALETTE COLOR":
            bits = int(elements.RedPaletteColorLookupTableDescriptor[2])
        return Header(
            int(elements.Columns), int(elements.Rows), mode, "DICOM", frames, channels=3 if colour else 1, bits=bits
        )
    except (AttributeError, TypeError, ValueError, IndexError):
        raise UnreadableImage(path, "damaged or truncated DICOM") from None


def _windowed(values: np.ndarray, elements: Any, intensity: IntensityConfig) -> tuple[np.ndarray, IntensityConfig]:
    """Values in the modality's unit, and the rule by which they become black and white."""
    if intensity.window or intensity.percentiles:
        return values, intensity
    if elements.get("VOILUTSequence"):
        from pydicom.pixels import apply_voi_lut

        top = 2 ** int(elements.VOILUTSequence[0].LUTDescriptor[2]) - 1
        return apply_voi_lut(values, elements, index=0), _with(intensity, window=(0.0, float(top)))
    center, width = _first(elements.get("WindowCenter")), _first(elements.get("WindowWidth"))
    if center is None or width is None or not width > 0:
        if values.dtype.kind in "ub" and values.max(initial=0) <= 255:
            return values.astype(np.uint8), intensity
        return values, _with(intensity, percentiles=FALLBACK)
    kind = str(elements.get("VOILUTFunction") or "LINEAR")
    if kind == "SIGMOID":  # PS3.3, C.11.2.1.3.1
        return 1 / (1 + np.exp(-4 * (values - center) / width)), _with(intensity, window=(0.0, 1.0))
    if kind == "LINEAR":  # PS3.3, C.11.2.1.2.1: the middle lies half a value lower, and the ends are values
        center, width = center - 0.5, width - 1
    return values, _with(intensity, window=(center - width / 2, center + width / 2))


def _with(intensity: IntensityConfig, **change: Any) -> IntensityConfig:
    return intensity.model_copy(update=change)


def _first(value: Any) -> float | None:
    """The first of several windows; None for none, or for what is no number."""
    try:
        found = float(value if isinstance(value, str | int | float) else value[0])
    except (TypeError, ValueError, IndexError):
        return None
    return found if np.isfinite(found) else None


def _reason(error: Exception, path: str | Path) -> str:
    if isinstance(error, MemoryError):
        return "does not fit into memory"
    if isinstance(error, AttributeError) and "Pixel Data" in str(error):
        return "DICOM without pixels"
    if "plugin" in str(error).lower() or isinstance(error, NotImplementedError):
        return (
            f"DICOM compressed by {_compression(path)}, for which no codec is installed: pip install pylibjpeg "
            "pylibjpeg-libjpeg pylibjpeg-openjpeg"
        )
    return "damaged or truncated DICOM"


def _compression(path: str | Path) -> str:
    from pydicom.filereader import read_file_meta_info

    try:
        return str(read_file_meta_info(path).TransferSyntaxUID.name)
    except Exception:  # the file is refused already; this only names why
        return "an unknown method"
