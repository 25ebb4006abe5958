"""Values of gray images for a window that the viewer chooses: units, exactness, padding, size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from dinomed.images.dicom.windows import GrayWindow
from dinomed.images.gray_values import MAX_CODE, GrayValues, read_gray_values
from dinomed.images.read import UnreadableImage, read_image
from dinomed.isolation.images import read_gray_values_isolated

MARKER = "Planted^Marker"
HU = np.linspace(-1024, 3000, 40 * 30).round().astype(np.int16).reshape(40, 30)
CT: dict[str, Any] = {"SOPClassUID": CTImageStorage, "RescaleSlope": 1, "RescaleIntercept": -1024}


def save(path: Path, values: np.ndarray, **elements: Any) -> Path:
    """Values (H, W), (frames, H, W), or (H, W, 3) with SamplesPerPixel=3."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID = elements.get("SOPClassUID", SecondaryCaptureImageStorage)
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    file.PatientName = MARKER
    colour = elements.get("SamplesPerPixel") == 3
    file.SamplesPerPixel, file.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        file.PlanarConfiguration = 0
    elif values.ndim == 3:
        file.NumberOfFrames = len(values)
    file.Rows, file.Columns = values.shape[:2] if colour else values.shape[-2:]
    file.BitsAllocated = file.BitsStored = 8 * values.dtype.itemsize
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, int(values.dtype.kind == "i")
    file.PixelData = values.tobytes()
    for name, value in elements.items():
        setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return path


def values_of(read: GrayValues) -> np.ndarray:
    return read.low + (read.codes.astype(np.float64) - 1) * read.step


def shown(read: GrayValues) -> np.ndarray:
    """What the page paints in the first window."""
    low, high = read.window.limits()
    levels = np.clip((values_of(read) - low) / (high - low), 0, 1)
    return np.where(read.codes == 0, 0, 255 * (1 - levels if read.inverted else levels))


def test_ct_has_exact_hounsfield_units_and_the_windows_of_its_file(tmp_path: Path) -> None:
    stored = (HU + 1024).astype(np.uint16)
    windows = {"WindowCenter": [40, -600], "WindowWidth": [400, 1500], "WindowCenterWidthExplanation": ["SOFT", "LUNG"]}
    path = save(tmp_path / "ct.dcm", stored, **CT, **windows)
    read = read_gray_values(path)
    assert read is not None
    assert (read.unit, read.step, read.has_curve, read.inverted) == ("HU", 1.0, False, False)
    assert (values_of(read) == HU).all()
    assert read.windows == [GrayWindow(40, 400, "LINEAR", "SOFT"), GrayWindow(-600, 1500, "LINEAR", "LUNG")]
    assert read.window == read.windows[0]
    isolated = read_gray_values_isolated(path, 0, 10**6)
    assert isolated is not None
    assert (isolated.codes == read.codes).all()
    assert (isolated.windows, isolated.low) == (read.windows, read.low)
    assert MARKER not in repr(read)


@pytest.mark.parametrize(
    "elements",
    [
        {**CT, "WindowCenter": 40, "WindowWidth": 400},
        {**CT, "WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"},
        {**CT, "PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 0},
        {"RescaleSlope": 0.37, "RescaleIntercept": 2},
    ],
    ids=["linear", "exact", "inverted without a window", "fractional slope"],
)
def test_the_first_window_shows_what_the_model_of_8_bits_reads(tmp_path: Path, elements: dict[str, Any]) -> None:
    path = save(tmp_path / "x.dcm", (HU + 1024).astype(np.uint16), **elements)
    read = read_gray_values(path)
    assert read is not None
    assert np.abs(shown(read) - read_image(path, channels=1)[..., 0]).max() <= 0.51  # rounding to 8 bits


def test_the_unit_is_that_of_the_file_and_never_a_guess(tmp_path: Path) -> None:
    stored = (HU + 1024).astype(np.uint16)
    units = []
    for elements in ({}, CT, {**CT, "RescaleType": "US"}, {**CT, "RescaleType": "OD"}, {"RescaleType": "<b>x y"}):
        read = read_gray_values(save(tmp_path / "x.dcm", stored, **elements))
        assert read is not None
        units.append(read.unit)
    assert units == ["", "HU", "", "OD", ""]


def test_large_images_are_reduced_without_their_padding(tmp_path: Path) -> None:
    values = np.full((90, 60), 1000, np.int16)
    values[:, :31] = -2000
    read = read_gray_values(save(tmp_path / "x.dcm", values, PixelPaddingValue=-2000), max_side=30)
    assert read is not None
    assert read.codes.shape == (30, 20)
    assert (read.codes[:, :10] == 0).all()
    assert (values_of(read)[:, 10:] == 1000).all()


def test_16_bit_png_is_upright_and_exact_and_8_bits_and_colour_have_no_window(tmp_path: Path) -> None:
    stored = np.arange(12, dtype=np.uint16).reshape(3, 4) * 370
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(stored).save(tmp_path / "deep.png", exif=exif)
    read = read_gray_values(tmp_path / "deep.png")
    assert read is not None
    assert (values_of(read) == np.rot90(stored, -1)).all()
    assert (read.window.limits(), read.unit) == ((0, 4095), "")  # 12 bits hold 4070
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "gray.png")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "colour.png")
    np.save(tmp_path / "bands.npy", np.zeros((4, 4, 5), np.uint16))
    for name in ("gray.png", "colour.png", "bands.npy"):
        assert read_gray_values(tmp_path / name) is None
    colours = save(tmp_path / "c.dcm", np.zeros((4, 4, 3), np.uint8), SamplesPerPixel=3)
    assert read_gray_values(colours) is None


def test_whole_numbers_above_those_of_float32_are_exact(tmp_path: Path) -> None:
    stored = np.arange(12, dtype=np.uint16).reshape(3, 4)
    read = read_gray_values(save(tmp_path / "x.dcm", stored, RescaleSlope=1, RescaleIntercept=2**25 + 1))
    assert read is not None
    assert (values_of(read) == 2.0**25 + 1 + stored).all()


def test_a_range_above_16_bits_is_coded_within_one_part_in_65_thousand(tmp_path: Path) -> None:
    stored = np.linspace(0, 65535, 200).astype(np.uint16).reshape(10, 20)
    read = read_gray_values(save(tmp_path / "x.dcm", stored, RescaleSlope=3.1, RescaleIntercept=0))
    assert read is not None
    assert read.codes.max() == MAX_CODE
    assert np.abs(values_of(read) - 3.1 * stored).max() <= read.step / 2 + 0.02  # float32 of 200,000


def test_frames_have_their_values_by_their_own_scale(tmp_path: Path) -> None:
    stack = np.stack([np.full((4, 5), number, np.uint16) for number in (10, 20, 30)])
    path = save(tmp_path / "stack.dcm", stack)
    read = read_gray_values(path, frame=2)
    assert read is not None
    assert (values_of(read) == 30).all()
    with pytest.raises(UnreadableImage, match="has no frame 3: it has 3 frames"):
        read_image(path, frame=3)
    with pytest.raises(UnreadableImage, match="has no frame 3"):
        read_gray_values(path, frame=3)
    groups = []
    for slope in (1, 1, 2):
        scale, group = Dataset(), Dataset()
        scale.RescaleSlope, scale.RescaleIntercept = slope, 0
        group.PixelValueTransformationSequence = Sequence([scale])
        groups.append(group)
    path = save(tmp_path / "scaled.dcm", stack, PerFrameFunctionalGroupsSequence=Sequence(groups))
    for frame, value in enumerate((10, 20, 60)):
        read = read_gray_values(path, frame=frame)
        assert read is not None
        assert (values_of(read) == value).all()
