"""Enhanced multi-frame DICOM: every frame has its own slope, intercept and window, computed here by hand."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from dinomed.images.decode import UnreadableImage
from dinomed.images.gray_values import read_gray_values
from dinomed.images.intensity import IntensityConfig
from dinomed.images.read import read_image
from dinomed.video.dicom_source import DicomSource
from dinomed.volumes.series import read_frame

PET = "1.2.840.10008.5.1.4.1.1.130"  # Enhanced PET Image Storage
STORED = (np.arange(3 * 6 * 5).reshape(3, 6, 5) * 37 % 1000).astype(np.int16)
SCALES = ((0.5, 0.0), (2.0, -100.0), (0.01, 7.0))  # slope and intercept of each frame
WINDOWS = ((100.0, 400.0), (900.0, 1800.0), (10.0, 8.0))  # center and width of each frame


def item(**elements: Any) -> Dataset:
    made = Dataset()
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def group(
    scale: tuple[float, float] | None = None, window: tuple[float, float] | None = None, **others: Any
) -> Dataset:
    made = Dataset()
    if scale is not None:
        values = item(RescaleSlope=scale[0], RescaleIntercept=scale[1], RescaleType="BQML")
        made.PixelValueTransformationSequence = [values]
    if window is not None:
        made.FrameVOILUTSequence = [
            item(WindowCenter=window[0], WindowWidth=window[1], VOILUTFunction="LINEAR_EXACT", **others)
        ]
    return made


def save(
    path: Path, groups: Sequence[Dataset], shared: Dataset | None = None, *, implicit: bool = False, **elements: Any
) -> Path:
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = PET
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    file.SamplesPerPixel, file.PhotometricInterpretation, file.NumberOfFrames = 1, "MONOCHROME2", len(STORED)
    file.Rows, file.Columns = STORED.shape[1:]
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 1
    file.PixelData = STORED.tobytes()
    for name, value in elements.items():
        setattr(file, name, value)
    if shared is not None:
        file.SharedFunctionalGroupsSequence = [shared]
    file.PerFrameFunctionalGroupsSequence = list(groups)
    file.save_as(path, enforce_file_format=True)
    return path


def by_hand(frame: int, scale: tuple[float, float], window: tuple[float, float]) -> np.ndarray:
    """Return a frame in 0 to 1 by slope, intercept and a window of the function LINEAR_EXACT."""
    values = STORED[frame] * scale[0] + scale[1]
    return np.clip((values - (window[0] - window[1] / 2)) / window[1], 0, 1)


def shown(path: Path, frame: int, **settings: Any) -> np.ndarray:
    return read_image(path, channels=1, intensity=IntensityConfig(bits=16, **settings), frame=frame)[..., 0]


@pytest.mark.parametrize("implicit", [False, True])
def test_each_frame_has_its_own_slope_intercept_and_window(tmp_path: Path, implicit: bool) -> None:
    groups = [group(*both) for both in zip(SCALES, WINDOWS, strict=True)]
    path = save(tmp_path / "a.dcm", groups, implicit=implicit)
    with closing(DicomSource(str(path))) as video:
        for frame, (scale, window) in enumerate(zip(SCALES, WINDOWS, strict=True)):
            expected = by_hand(frame, scale, window)
            np.testing.assert_allclose(shown(path, frame), expected, atol=1e-6)  # float32
            of_video = video.advance(frame)
            assert of_video is not None
            np.testing.assert_allclose(of_video.pixels[..., 0], 255 * expected, atol=0.51)  # rounded to 8 bits
            asked = by_hand(frame, scale, (150.0, 300.0))
            np.testing.assert_allclose(shown(path, frame, window=(0, 300)), asked, atol=1e-6)
            values = STORED[frame] * scale[0] + scale[1]
            np.testing.assert_allclose(read_frame(str(path), frame)[1], values, rtol=1e-6)  # of a volume
            gray = read_gray_values(path, frame=frame)
            assert gray is not None
            assert (gray.window.center, gray.window.width, gray.unit) == (*window, "BQML")
            np.testing.assert_allclose(gray.low + (gray.codes - 1.0) * gray.step, values, atol=0.51 * gray.step + 1e-3)


def test_a_frame_without_a_group_of_its_own_has_the_shared_one_not_that_of_the_first_frame(tmp_path: Path) -> None:
    groups = [group(SCALES[0], WINDOWS[0]), group(), group(SCALES[2])]
    path = save(tmp_path / "a.dcm", groups, group(SCALES[1], WINDOWS[1]))
    for frame, scale, window in ((1, SCALES[1], WINDOWS[1]), (2, SCALES[2], WINDOWS[1])):
        np.testing.assert_allclose(shown(path, frame), by_hand(frame, scale, window), atol=1e-6)
        values = STORED[frame] * scale[0] + scale[1]
        np.testing.assert_allclose(read_frame(str(path), frame)[1], values, rtol=1e-6)


def test_the_window_of_a_frame_replaces_a_lookup_table_of_the_file(tmp_path: Path) -> None:
    table = item(LUTDescriptor=[4, 0, 8], LUTData=np.array([0, 85, 170, 255], "<u2").tobytes())
    table["LUTDescriptor"].VR = "SS"
    groups = [group(SCALES[0], WINDOWS[0])] * 3
    path = save(tmp_path / "a.dcm", groups, VOILUTSequence=[table], WindowCenter=5, WindowWidth=3)
    np.testing.assert_allclose(shown(path, 1), by_hand(1, SCALES[0], WINDOWS[0]), atol=1e-6)


@pytest.mark.parametrize("first", [None, WINDOWS[0]], ids=["no windows", "a window of the first frame"])
def test_frames_without_a_window_have_the_range_of_the_first_frame_in_its_unit(
    tmp_path: Path, first: tuple[float, float] | None
) -> None:
    path = save(tmp_path / "a.dcm", [group(SCALES[0], first), group(SCALES[1]), group(SCALES[2])])
    low, high = np.percentile(STORED[0] * SCALES[0][0] + SCALES[0][1], (0.5, 99.5))
    for frame in (1, 2):
        expected = by_hand(frame, SCALES[frame], ((low + high) / 2, high - low))
        np.testing.assert_allclose(shown(path, frame), expected, atol=1e-6)


def test_a_frame_that_the_file_does_not_describe_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", [group(SCALES[0]), group(SCALES[1])])
    shown(path, 1)
    with pytest.raises(UnreadableImage, match="frame 2 has no functional group, but others have values"):
        shown(path, 2)


def test_groups_that_say_nothing_of_values_may_be_fewer_than_frames(tmp_path: Path) -> None:
    (slope, intercept), (center, width) = SCALES[0], WINDOWS[0]
    path = save(
        tmp_path / "a.dcm", [Dataset(), Dataset()], RescaleSlope=slope, RescaleIntercept=intercept,
        WindowCenter=center, WindowWidth=width, VOILUTFunction="LINEAR_EXACT",
    )  # fmt: skip
    np.testing.assert_allclose(shown(path, 2), by_hand(2, SCALES[0], WINDOWS[0]), atol=1e-6)
