"""DICOM images: one frame, by default the first, in modality units (Hounsfield units for CT), mapped by a window.

The values of black and white are the first of these that exists:

1. the `window` or the `percentiles` of the `IntensityConfig`,
2. the first window (or VOI LUT) of the frame,
3. the full range for colours and for 8 bits, and the percentiles 0.5 and 99.5 for gray of more bits.

Each frame of an enhanced image has its own slope, intercept and window, as of
`dinomed.images.dicom.elements.frame_elements`. MONOCHROME1 is inverted, so that bone is bright. Palette and YBR images
are converted to RGB. Padding (Pixel Padding Value) is black and does not count for percentiles. The codecs are listed
in `dinomed.images.dicom.codecs`.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.images.bounds.dicom_streams import bounded_dicom
from dinomed.images.decode import MAX_PIXELS, Header, UnreadableImage, refusing_with
from dinomed.images.dicom.codecs import is_video_syntax, undecodable
from dinomed.images.dicom.elements import (
    DAMAGED,
    NotAnImage,
    count_held_frames,
    damage_reason,
    frame_elements,
    is_segmentation,
    read_elements,
    reading_dicom,
)
from dinomed.images.dicom.windows import GrayWindow, list_windows, number_of, unit_of_values
from dinomed.images.intensity import IntensityConfig, to_range

FALLBACK = (0.5, 99.5)
"""Percentiles for an image without a window."""
_VIDEO_READER = "dinomed.video.video"  # imported late: videos are built on images


def read_dicom_header(path: str | Path, max_pixels: int = MAX_PIXELS) -> Header:
    """Read the header without the pixels; `mode` is the photometric interpretation, `bits` is BitsStored.

    Raises:
        UnreadableImage: as in `read_dicom`; decoding errors are not detected.
    """
    return _header(path, _read_image_elements(path, max_pixels))


def read_dicom(
    path: str | Path, intensity: IntensityConfig, max_pixels: int = MAX_PIXELS, frame: int = 0
) -> tuple[Header, np.ndarray]:
    """Read the header and a frame, as of `DicomFrames.read`.

    Raises:
        UnreadableImage: as of `DicomFrames` and of its `read`.
    """
    frames = DicomFrames(path, intensity, max_pixels)
    return frames.header, frames.read(frame)


@dataclass(frozen=True)
class DicomValues:
    """A gray frame in modality units.

    Attributes:
        values: (H, W), any real type.
        padding: bool (H, W), or None.
        window: the first one of the frame; without one, the range that `DicomFrames.read` measures.
        has_curve: the frame has a VOI LUT, which is shown in place of `window`.
        windows: those of the frame, or else of the file.
        unit: of the values, or "".
        inverted: low values are bright (MONOCHROME1).
    """

    values: np.ndarray
    padding: np.ndarray | None
    window: GrayWindow
    has_curve: bool
    windows: list[GrayWindow]
    unit: str
    inverted: bool


class DicomFrames:
    """The frames of a DICOM image, each with its own slope, intercept and window.

    Frames without a window have the range of the values of the first frame. The exception: if percentiles are needed,
    and those of the first frame are equal (it is black), each frame has its own.

    Raises:
        UnreadableImage: the header is damaged or truncated, or the file is without pixels, a segmentation or too large.
    """

    def __init__(self, path: str | Path, intensity: IntensityConfig, max_pixels: int = MAX_PIXELS) -> None:
        self._path, self._intensity = path, intensity
        self._elements = _read_image_elements(path, max_pixels)
        self.header = _header(path, self._elements)
        self._range: IntensityConfig | None = None
        self._first_is_measured = False

    def read(self, number: int) -> np.ndarray:
        """Read a frame ``(H, W, 1 or 3)``: uint8, or with 16 bits float32 in 0 to 1.

        Raises:
            UnreadableImage: there is no such frame, or it is damaged or truncated, needs a codec that is not installed,
                or has values of unknown range.
        """
        with refusing_with(self._path, lambda error: decoding_reason(error, self._elements)):
            return self._show(self._decode(number), number)

    def count_held(self) -> int:
        """Return the largest number of frames that the file can hold, by its bytes; the header may state another.

        Raises:
            UnreadableImage: the file is damaged or truncated in its header.
        """
        return count_held_frames(self._path, self._elements)

    def read_values(self, number: int) -> DicomValues | None:
        """Read a gray frame in modality units.

        Returns:
            None for colours.

        Raises:
            UnreadableImage: as of `read`.
        """
        from pydicom.pixels import apply_modality_lut

        if self.header.channels != 1:
            return None
        with refusing_with(self._path, lambda error: decoding_reason(error, self._elements)):
            stored, elements = self._decode(number), frame_elements(self._elements, number)
            padding = find_padding(stored, elements)
            values, windows = apply_modality_lut(stored, elements), list_windows(elements)
            has_curve = bool(elements.get("VOILUTSequence"))
            if windows and not has_curve:
                window = windows[0]
            else:
                low, high = self._measured_range(values, padding, number).window or (0.0, 1.0)
                window = GrayWindow((low + high) / 2, max(high - low, 1e-6))
            return DicomValues(
                values, padding, window, has_curve, windows, unit_of_values(elements),
                self.header.mode == "MONOCHROME1",
            )  # fmt: skip

    def _decode(self, number: int) -> np.ndarray:
        """Return the stored values of a frame."""
        from pydicom.pixels import pixel_array
        from pydicom.uid import JPEGBaseline8Bit

        if self.header.video_stream:
            frame: np.ndarray = import_module(_VIDEO_READER).Video(self._path).read(number).pixels
            return frame
        if not 0 <= number < self.header.frames:
            raise UnreadableImage(self._path, f"has no frame {number}: it has {self.header.frames:,} frames")
        with reading_dicom(self._path, lambda error: decoding_reason(error, self._elements)) as file:
            # pydicom passes what Pillow refuses on to GDCM, which ends the process on some damaged frames
            only = "pillow" if self._elements.file_meta.get("TransferSyntaxUID") == JPEGBaseline8Bit else ""
            return np.asarray(pixel_array(bounded_dicom(file), index=number, decoding_plugin=only))

    def _show(self, stored: np.ndarray, number: int) -> np.ndarray:
        """Return a frame in its range, ``(H, W, 1 or 3)``; `stored` is ``(H, W)`` or ``(H, W, 3)``, YBR as RGB."""
        from pydicom.pixels import apply_color_lut, apply_modality_lut

        header, elements = self.header, self._elements
        if header.channels == 3:
            colours = apply_color_lut(stored, elements) if header.mode == "PALETTE COLOR" else stored
            return to_range(colours, _colour_range(colours, header, self._intensity))
        elements = frame_elements(elements, number)
        padding = find_padding(stored, elements)
        values, window = _windowed(apply_modality_lut(stored, elements), elements, self._intensity)
        shown = to_range(values[..., None], window or self._measured_range(values, padding, number))
        if header.mode == "MONOCHROME1":
            shown = (255 if shown.dtype == np.uint8 else np.float32(1)) - shown
        if padding is not None:
            shown[padding] = 0
        return shown

    def _measured_range(self, values: np.ndarray, padding: np.ndarray | None, number: int) -> IntensityConfig:
        """Return the range of the first frame (8 bits, or percentiles), or of this one if the first is empty."""
        from pydicom.pixels import apply_modality_lut

        if number > 0 and not self._first_is_measured:
            first, elements = self._decode(0), frame_elements(self._elements, 0)
            self._measured_range(apply_modality_lut(first, elements), find_padding(first, elements), 0)
        if self._range is not None:
            return self._range
        inside = values if padding is None or padding.all() else values[~padding]
        low, high = np.percentile(inside, self._intensity.percentiles or FALLBACK)
        has_8_bits = not self._intensity.percentiles and values.dtype.kind in "ub" and values.max() <= 255
        window = (0.0, 255.0) if has_8_bits else (float(low), float(high))
        measured = _with(self._intensity, window=window, percentiles=None)
        if number == 0:
            self._first_is_measured, self._range = True, measured if low < high else None
        return measured


def decoding_reason(error: Exception, elements: Any) -> str:
    """Return a short reason for an error of pydicom. The text of the error is not used: it may contain patient data."""
    if (reason := damage_reason(error)) != DAMAGED:
        return reason
    if isinstance(error, AttributeError) and "Pixel Data" in str(error):
        return "DICOM without pixels"
    try:
        return undecodable(elements) or DAMAGED
    except Exception:  # elements are converted when they are used
        return DAMAGED


def _read_image_elements(path: str | Path, max_pixels: int) -> Any:
    elements = read_elements(path, max_pixels)
    if is_segmentation(elements):
        raise NotAnImage(path, "a DICOM segmentation, not an image")
    return elements


def _header(path: str | Path, elements: Any) -> Header:
    with refusing_with(path, damage_reason):
        mode = str(elements.get("PhotometricInterpretation", "MONOCHROME2"))
        is_stream = is_video_syntax(elements.file_meta.get("TransferSyntaxUID"))
        colour = int(elements.get("SamplesPerPixel", 1)) == 3 or mode == "PALETTE COLOR" or is_stream
        frames = int(elements.get("NumberOfFrames") or 1)
        bits = int(elements.get("BitsStored") or elements.get("BitsAllocated") or 8)
        if mode == "PALETTE COLOR":
            bits = int(elements.RedPaletteColorLookupTableDescriptor[2])
        return Header(
            int(elements.Columns), int(elements.Rows), mode, "DICOM", frames, channels=3 if colour else 1, bits=bits,
            video_stream=is_stream,
        )  # fmt: skip


def _colour_range(colours: np.ndarray, header: Header, intensity: IntensityConfig) -> IntensityConfig:
    """Return the config with the full range of colours of more than 8 bits, which is that of their stored bits."""
    if intensity.window or intensity.percentiles or colours.dtype.itemsize == 1:
        return intensity
    return _with(intensity, window=(0.0, float(2**header.bits - 1)))


def find_padding(stored: np.ndarray, elements: Any) -> np.ndarray | None:
    """Return where a gray frame is padding, bool ``(H, W)``; None if it has none (PS3.3, C.7.5.1.1.2)."""
    first = elements.get("PixelPaddingValue")
    if first is None or isinstance(first, bytes) or stored.dtype.kind not in "ui":
        return None
    last = elements.get("PixelPaddingRangeLimit")
    # a value may be written as unsigned beside signed pixels
    ends = [int(np.int64(int(value)).astype(stored.dtype)) for value in (first, first if last is None else last)]
    padding = (stored >= min(ends)) & (stored <= max(ends))
    return padding if padding.any() else None


def _windowed(
    values: np.ndarray, elements: Any, intensity: IntensityConfig
) -> tuple[np.ndarray, IntensityConfig | None]:
    """Return the values (in modality units or after the VOI LUT), and the config with their black and white values.

    The config is None if these values have to be measured.
    """
    if intensity.window:
        return values, intensity
    if intensity.percentiles:
        return values, None
    if elements.get("VOILUTSequence"):
        from pydicom.pixels import apply_voi_lut

        top = 2 ** int(elements.VOILUTSequence[0].LUTDescriptor[2]) - 1
        return apply_voi_lut(values, elements, index=0), _with(intensity, window=(0.0, float(top)))
    center, width = number_of(elements.get("WindowCenter")), number_of(elements.get("WindowWidth"))
    if center is None or width is None or not width > 0:
        return values, intensity if values.dtype == np.uint8 else None
    function = str(elements.get("VOILUTFunction") or "LINEAR")
    if function == "SIGMOID":  # PS3.3, C.11.2.1.3.1
        return 1 / (1 + np.exp(-4 * (values - center) / width)), _with(intensity, window=(0.0, 1.0))
    if function == "LINEAR":  # PS3.3, C.11.2.1.2.1: LINEAR uses c - 0.5 and w - 1
        center, width = center - 0.5, width - 1
    return values, _with(intensity, window=(center - width / 2, center + width / 2))


def _with(intensity: IntensityConfig, **change: Any) -> IntensityConfig:
    return intensity.model_copy(update=change)
