"""DICOM images: the first frame, in modality units (Hounsfield units for CT), mapped by a window.

The range from black to white is the `window` or the `percentiles` of the `IntensityConfig`; without them, the first
window (or VOI LUT) of the file; without that, the full range for 8 bits and the percentiles 0.5 and 99.5 for more.
MONOCHROME1 is inverted, so that bone is bright; palettes and YBR become RGB. pydicom decodes JPEG and JPEG 2000 with
Pillow, and RLE itself; JPEG-LS and lossless JPEG need another codec.

Only the elements that describe the pixels are read. Messages contain no value of other elements, and no text of pydicom
that may quote one, since the file identifies its patient.
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
"""Percentiles for an image without a window."""
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
    """Return whether a file is DICOM, by its preamble."""
    return first_bytes(path, 132)[128:] == b"DICM"


def read_dicom_header(path: str | Path, max_pixels: int = MAX_PIXELS) -> Header:
    """Read the header without decoding; `mode` is the photometric interpretation, `bits` the bits stored.

    Raises:
        UnreadableImage: as `read_dicom`, except for errors of decoding.
    """
    return _header(path, _read_elements(path, max_pixels))


def read_dicom(path: str | Path, intensity: IntensityConfig, max_pixels: int = MAX_PIXELS) -> tuple[Header, np.ndarray]:
    """Read the header and the first frame ``(H, W, 1 or 3)``: uint8, or with 16 bits float32 in 0 to 1.

    Raises:
        UnreadableImage: the file is damaged, truncated, without pixels, a segmentation, too large, or needs a codec
            that is not installed; or its values have no known range.
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
    except Exception as error:  # pydicom raises errors of many types, and may quote values
        raise UnreadableImage(path, _reason(error, path)) from None
    if header.mode == "MONOCHROME1":
        shown = (255 if shown.dtype == np.uint8 else np.float32(1)) - shown
    return header, shown


def _read_elements(path: str | Path, max_pixels: int) -> Any:
    """Read the elements of `_TAGS`; for enhanced images, those of the first frame."""
    from pydicom import config, dcmread

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it quotes unusual values
    config.settings.reading_validation_mode = config.IGNORE
    try:
        with quiet_pillow, open(path, "rb", opener=open_regular) as file:
            elements = dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
            for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
                for group in (elements.get(groups) or [])[:1]:
                    for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                        for item in (group.get(name) or [])[:1]:
                            elements.update(item)
            rows, columns = int(elements.get("Rows") or 0), int(elements.get("Columns") or 0)
            kind = str(elements.get("SOPClassUID", ""))
    except OSError as error:
        raise UnreadableImage(path, (error.strerror or "cannot be read").lower()) from None
    except Exception:  # as in `read_dicom`: errors of many types, which may quote values
        raise UnreadableImage(path, "damaged or truncated DICOM") from None
    if kind in _SEGMENTATION:
        raise UnreadableImage(path, "a DICOM segmentation, not an image")
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
    """Return the values in modality units, and the rule for black and white."""
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
    if kind == "LINEAR":  # PS3.3, C.11.2.1.2.1: the centre is half a value lower, and the limits are values
        center, width = center - 0.5, width - 1
    return values, _with(intensity, window=(center - width / 2, center + width / 2))


def _with(intensity: IntensityConfig, **change: Any) -> IntensityConfig:
    return intensity.model_copy(update=change)


def _first(value: Any) -> float | None:
    """Return the first of one or several numbers; None if there is none."""
    try:
        number = float(value if isinstance(value, str | int | float) else value[0])
    except (TypeError, ValueError, IndexError):
        return None
    return number if np.isfinite(number) else None


def _reason(error: Exception, path: str | Path) -> str:
    """Return a short reason for an error of pydicom, without its text."""
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
    """Return the name of the compression method."""
    from pydicom.filereader import read_file_meta_info

    try:
        return str(read_file_meta_info(path).TransferSyntaxUID.name)
    except Exception:  # the file is refused already; this only names the method
        return "an unknown method"
