"""DICOM images: one frame, by default the first, in modality units (Hounsfield units for CT), mapped by a window.

The values of black and white are the first of these that exists:

1. the `window` or the `percentiles` of the `IntensityConfig`,
2. the first window (or VOI LUT) of the file,
3. the full range for 8 bits, and the percentiles 0.5 and 99.5 for more bits.

MONOCHROME1 is inverted, so that bone is bright. Palette and YBR images are converted to RGB. pydicom decodes JPEG and
JPEG 2000 with Pillow, and RLE without another package. JPEG-LS and lossless JPEG need another codec.

A DICOM file contains patient data. Therefore only the elements that describe the pixels are read, and messages contain
neither values of other elements nor error texts of pydicom, which may contain such values.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.errors import DinomedError
from dinomed.images.bounds.containers import too_large
from dinomed.images.bounds.dicom_streams import bounded_dicom, check_frame, pixel_bytes
from dinomed.images.bounds.tiff_samples import MAX_BYTES
from dinomed.images.decode import (
    MAX_PIXELS,
    NO_MEMORY,
    Header,
    UnreadableImage,
    first_bytes,
    is_of_data_worker,
    open_regular,
    quiet_pillow,
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
_FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_SEGMENTATION = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")


def is_dicom(path: str | Path) -> bool:
    """Return whether a file is DICOM, by its preamble."""
    return first_bytes(path, 132)[128:] == b"DICM"


def read_dicom_header(path: str | Path, max_pixels: int = MAX_PIXELS) -> Header:
    """Read the header without the pixels; `mode` is the photometric interpretation, `bits` is BitsStored.

    Raises:
        UnreadableImage: as in `read_dicom`; decoding errors are not detected.
    """
    return _header(path, _read_elements(path, max_pixels))


def read_dicom(
    path: str | Path, intensity: IntensityConfig, max_pixels: int = MAX_PIXELS, frame: int = 0
) -> tuple[Header, np.ndarray]:
    """Read the header and a frame ``(H, W, 1 or 3)``: uint8, or with 16 bits float32 in 0 to 1.

    The window is that of the first frame.

    Raises:
        UnreadableImage: the file is damaged, truncated, without pixels, a segmentation, too large, needs a codec
            that is not installed, or has values of unknown range.
    """
    from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

    elements = _read_elements(path, max_pixels)
    header = _header(path, elements)
    try:
        with quiet_pillow, open(path, "rb", opener=open_regular) as file:
            stored = pixel_array(bounded_dicom(file), index=frame)
        if header.mode == "PALETTE COLOR":
            return header, to_range(apply_color_lut(stored, elements), intensity)
        if header.channels == 3:
            return header, to_range(stored, intensity)
        values, range_config = _windowed(apply_modality_lut(stored, elements), elements, intensity)
        shown = to_range(values[..., None], range_config)
    except DinomedError as error:
        raise UnreadableImage(path, str(error)) from None
    except Exception as error:  # pydicom raises many types; the error text may contain values of elements
        if is_of_data_worker(error):
            raise
        raise UnreadableImage(path, _reason(error, path)) from None
    if header.mode == "MONOCHROME1":
        shown = (255 if shown.dtype == np.uint8 else np.float32(1)) - shown
    return header, shown


def read_pixel_spacing(path: str | Path) -> tuple[float, float] | None:
    """Return the distances of neighbouring rows and of neighbouring columns in mm, or None if the file has none.

    Pixel Spacing (0028,0030) holds in the patient; of enhanced images it is that of the first frame. Imager Pixel
    Spacing holds at the detector, and is not used. A file that is not DICOM has no spacing.

    Raises:
        UnreadableImage: the file is a damaged DICOM.
    """
    from pydicom import dcmread

    if not is_dicom(path):
        return None
    try:
        with quiet_pillow, open(path, "rb", opener=open_regular) as file:
            elements = dcmread(file, stop_before_pixels=True, specific_tags=["PixelSpacing", *_FUNCTIONAL_GROUPS])
            for groups in _FUNCTIONAL_GROUPS:
                for group in (elements.get(groups) or [])[:1]:
                    for item in (group.get("PixelMeasuresSequence") or [])[:1]:
                        elements.update(item)
        rows, columns = (float(value) for value in elements.PixelSpacing)
    except AttributeError:
        return None
    except Exception:  # as in `read_dicom`
        raise UnreadableImage(path, "damaged or truncated DICOM") from None
    return (rows, columns) if 0 < rows < 1000 and 0 < columns < 1000 else None


def read_frame_times(path: str | Path, frames: int) -> list[float]:
    """Return for each frame the time since the frame before it, in ms (PS3.3, C.7.6.5); empty if no rate is stated.

    Raises:
        UnreadableImage: the file is a damaged DICOM.
    """
    from pydicom import dcmread

    tags: list[Any] = ["FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate"]
    try:
        with quiet_pillow, open(path, "rb", opener=open_regular) as file:
            elements = dcmread(bounded_dicom(file), stop_before_pixels=True, specific_tags=tags)
        vector = [float(step) for step in elements.get("FrameTimeVector") or []]
        if len(vector) == frames and min(vector[1:], default=0) > 0:
            return vector
        step = float(elements.get("FrameTime") or 0)
        rate = float(elements.get("CineRate") or elements.get("RecommendedDisplayFrameRate") or 0)
    except Exception:  # as in `read_dicom`
        raise UnreadableImage(path, "damaged or truncated DICOM") from None
    step = step if step > 0 else 1000 / rate if rate > 0 else 0.0
    return [step] * frames if step else []


def _read_elements(path: str | Path, max_pixels: int) -> Any:
    """Read the elements of `_TAGS`; for enhanced (multi-frame) images, the elements of the first frame."""
    from pydicom import config, dcmread

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings may contain values of elements
    config.settings.reading_validation_mode = config.IGNORE
    try:
        with quiet_pillow, open(path, "rb", opener=open_regular) as file:
            elements = dcmread(bounded_dicom(file), stop_before_pixels=True, specific_tags=_TAGS)
            for groups in _FUNCTIONAL_GROUPS:
                for group in (elements.get(groups) or [])[:1]:
                    for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                        for item in (group.get(name) or [])[:1]:
                            elements.update(item)
            rows, columns = int(elements.get("Rows") or 0), int(elements.get("Columns") or 0)
            sop_class = str(elements.get("SOPClassUID", ""))
            samples = pixel_bytes(elements)
            if rows and columns and rows * columns <= max_pixels:
                check_frame(file, rows, columns, int(elements.get("NumberOfFrames") or 1))
    except OSError as error:
        raise UnreadableImage(path, (error.strerror or "cannot be read").lower()) from None
    except DinomedError as error:
        raise UnreadableImage(path, str(error)) from None
    except Exception as error:  # as in `read_dicom`
        if is_of_data_worker(error):
            raise
        reason = NO_MEMORY if isinstance(error, MemoryError) else "damaged or truncated DICOM"
        raise UnreadableImage(path, reason) from None
    if sop_class in _SEGMENTATION:
        raise UnreadableImage(path, "a DICOM segmentation, not an image")
    if not rows or not columns:
        raise UnreadableImage(path, "DICOM without pixels")
    if rows * columns > max_pixels:
        raise UnreadableImage(path, too_large(rows * columns, max_pixels))
    if samples > MAX_BYTES:
        raise UnreadableImage(path, f"{samples / 1e9:.1f} GB of samples, over the limit of 2.1")
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
    except Exception as error:  # elements are converted when they are used
        if is_of_data_worker(error):
            raise
        raise UnreadableImage(path, "damaged or truncated DICOM") from None


def _windowed(values: np.ndarray, elements: Any, intensity: IntensityConfig) -> tuple[np.ndarray, IntensityConfig]:
    """Return the values (in modality units or after the VOI LUT), and the config with their black and white values."""
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
    function = str(elements.get("VOILUTFunction") or "LINEAR")
    if function == "SIGMOID":  # PS3.3, C.11.2.1.3.1
        return 1 / (1 + np.exp(-4 * (values - center) / width)), _with(intensity, window=(0.0, 1.0))
    if function == "LINEAR":  # PS3.3, C.11.2.1.2.1: LINEAR uses c - 0.5 and w - 1
        center, width = center - 0.5, width - 1
    return values, _with(intensity, window=(center - width / 2, center + width / 2))


def _with(intensity: IntensityConfig, **change: Any) -> IntensityConfig:
    return intensity.model_copy(update=change)


def _first(value: Any) -> float | None:
    """Return `value` or its first element as a number; None if it is missing or not finite."""
    try:
        number = float(value if isinstance(value, str | int | float) else value[0])
    except (TypeError, ValueError, IndexError):
        return None
    return number if np.isfinite(number) else None


def _reason(error: Exception, path: str | Path) -> str:
    """Return a short reason for an error of pydicom. The text of the error is not used: it may contain patient data."""
    if isinstance(error, MemoryError):
        return NO_MEMORY
    if isinstance(error, AttributeError) and "Pixel Data" in str(error):
        return "DICOM without pixels"
    unsupported = isinstance(error, NotImplementedError) and "Value Representation" not in str(error)
    if "plugin" in str(error).lower() or unsupported:
        return (
            f"DICOM compressed by {_compression(path)}, and no codec is installed for it; pip install pylibjpeg "
            "pylibjpeg-libjpeg pylibjpeg-openjpeg"
        )
    return "damaged or truncated DICOM"


def _compression(path: str | Path) -> str:
    """Return the name of the compression method."""
    from pydicom.filereader import read_file_meta_info

    try:
        return str(read_file_meta_info(path).TransferSyntaxUID.name)
    except Exception:  # the file is unreadable in any case; only the name is unknown
        return "an unknown method"
