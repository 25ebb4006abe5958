"""DICOM: values in their unit, windows as pydicom applies them, nothing of the patient, and a reason for what is no
picture."""

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, SecondaryCaptureImageStorage, generate_uid

from dinomed.datasets.scan.scan import scan
from dinomed.images.dicom import is_dicom, read_pixel_spacing
from dinomed.images.read import IntensityConfig, UnreadableImage, read_header, read_image, read_mask, read_whole

MARKER = "Planted^Marker"
HU = np.linspace(-1024, 3000, 40 * 30).round().astype(np.int16).reshape(40, 30)


def dicom(values: np.ndarray, **elements: Any) -> Dataset:
    """A picture whose patient has a name; values (H, W), (frames, H, W), or (H, W, 3) with SamplesPerPixel=3."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid(
        entropy_srcs=["one"]
    )  # a file of equal bytes
    file.PatientName, file.PatientID, file.PatientBirthDate = MARKER, MARKER, "19500101"
    colour = elements.get("SamplesPerPixel") == 3
    file.SamplesPerPixel, file.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        file.PlanarConfiguration = 0
    if values.ndim == 3 and not colour:
        file.NumberOfFrames = len(values)
    file.Rows, file.Columns = values.shape[:2] if colour else values.shape[-2:]
    file.BitsAllocated = file.BitsStored = 8 * values.dtype.itemsize
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, int(values.dtype.kind == "i")
    file.PixelData = values.tobytes()
    for name, value in elements.items():
        setattr(file, name, value)
    return file


def save(path: Path, values: np.ndarray = HU, **elements: Any) -> Path:
    with warnings.catch_warnings(action="ignore"):  # some are wrong on purpose
        dicom(values, **elements).save_as(path, enforce_file_format=True)
    return path


def reason(path: Path, **options: Any) -> str:
    with pytest.raises(UnreadableImage) as refused:
        read_image(path, **options)
    assert MARKER not in str(refused.value)
    return refused.value.reason


def test_ct_is_read_in_hounsfield_units(tmp_path: Path) -> None:
    stored = (HU.astype(int) + 1024).astype(np.uint16)
    path = save(tmp_path / "a.dcm", stored, RescaleSlope=1, RescaleIntercept=-1024)
    lung = read_image(path, channels=1, intensity=IntensityConfig(bits=16, window=(-1350, 150)))[..., 0]
    # float32 of values up to 4,000
    np.testing.assert_allclose(lung, np.clip((HU + 1350.0) / 1500, 0, 1), atol=1e-6)
    windowed = save(tmp_path / "b.dcm", stored, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=[40, 300],
               WindowWidth=[400, 1500])  # fmt: skip
    soft = read_image(windowed, channels=1)[..., 0]
    expected = np.clip((HU - (39.5 - 399 / 2)) / 399, 0, 1) * 255  # the first window; PS3.3, C.11.2.1.2.1
    np.testing.assert_allclose(soft, expected, atol=0.51)  # rounded to whole numbers
    same = read_image(windowed, channels=1, intensity=IntensityConfig(bits=16, window=(-1350, 150)))[..., 0]
    np.testing.assert_array_equal(same, lung)  # what is asked for comes before what the file names


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_are_those_of_pydicom(tmp_path: Path, function: str) -> None:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    elements = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 1500.5, "WindowWidth": 900, "VOILUTFunction": function}
    ours = read_image(save(tmp_path / "a.dcm", values, **elements), channels=1, intensity=IntensityConfig(bits=16))
    theirs = apply_voi_lut(values.astype(np.float64), dicom(values, **elements)) / 4095
    np.testing.assert_allclose(ours[..., 0], theirs, atol=2e-6)  # float32 beside float64


def test_monochrome1_is_turned(tmp_path: Path) -> None:
    elements = {"WindowCenter": 500, "WindowWidth": 2000}
    inverted = read_image(save(tmp_path / "1.dcm", PhotometricInterpretation="MONOCHROME1", **elements))
    two = read_image(save(tmp_path / "2.dcm", **elements))
    np.testing.assert_array_equal(inverted, 255 - two)
    assert inverted.shape == (40, 30, 3)


def test_without_a_window_8_bits_stay_and_more_go_by_percentiles(tmp_path: Path) -> None:
    small = (np.arange(1200) % 200).astype(np.uint8).reshape(40, 30)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.dcm", small), channels=1)[..., 0], small)
    low, high = np.percentile(HU, (0.5, 99.5))
    for name, width in (("b", None), ("c", 0), ("d", "nothing")):
        elements = {} if width is None else {"WindowCenter": 40, "WindowWidth": width if width != "nothing" else ""}
        shown = read_image(save(tmp_path / f"{name}.dcm", **elements), channels=1)[..., 0]
        np.testing.assert_allclose(shown, np.clip((HU - low) / (high - low), 0, 1) * 255, atol=0.51)


def test_colour_and_frames(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    path = save(tmp_path / "a.dcm", picture, SamplesPerPixel=3)
    np.testing.assert_array_equal(read_image(path), picture)
    frames = save(tmp_path / "b.dcm", np.stack([HU, HU[::-1]]), WindowCenter=40, WindowWidth=400)
    header = read_header(frames)
    assert (header.frames, header.channels, header.bits, header.format) == (2, 1, 16, "DICOM")
    assert (header.width, header.height) == (30, 40)
    first = save(tmp_path / "c.dcm", HU, WindowCenter=40, WindowWidth=400)
    np.testing.assert_array_equal(read_image(frames), read_image(first))
    assert read_whole(frames) == header


def test_an_enhanced_picture_has_its_values_in_its_first_frame(tmp_path: Path) -> None:
    unit, voi, shared, frame = Dataset(), Dataset(), Dataset(), Dataset()
    unit.RescaleSlope, unit.RescaleIntercept, unit.RescaleType = 2, -1000, "HU"
    voi.WindowCenter, voi.WindowWidth, voi.VOILUTFunction = 100, 500, "LINEAR_EXACT"
    shared.PixelValueTransformationSequence, frame.FrameVOILUTSequence = [unit], [voi]
    stored = np.arange(1200, dtype=np.uint16).reshape(40, 30)
    path = save(tmp_path / "a.dcm", np.stack([stored, stored]), SharedFunctionalGroupsSequence=[shared],
                PerFrameFunctionalGroupsSequence=[frame, frame])  # fmt: skip
    shown = read_image(path, channels=1, intensity=IntensityConfig(bits=16))[..., 0]
    np.testing.assert_allclose(shown, np.clip((stored * 2.0 - 1000 + 150) / 500, 0, 1), atol=1e-6)


def test_only_the_spacing_in_the_patient_is_a_spacing(tmp_path: Path) -> None:
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [0.3, 0.4]
    shared.PixelMeasuresSequence = [measures]
    expected = {
        "plain": ({"PixelSpacing": [0.5, 0.25]}, (0.5, 0.25)),
        "enhanced": ({"SharedFunctionalGroupsSequence": [shared]}, (0.3, 0.4)),
        "detector": ({"ImagerPixelSpacing": [0.5, 0.25]}, None),
        "zero": ({"PixelSpacing": [0, 0.25]}, None),
        "none": ({}, None),
    }
    for name, (elements, spacing) in expected.items():
        assert read_pixel_spacing(save(tmp_path / name, **elements)) == spacing, name
    (tmp_path / "text").write_text("no DICOM")
    assert read_pixel_spacing(tmp_path / "text") is None


def test_files_without_a_readable_picture_are_refused_with_the_reason(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[: len(whole) - 200])
    assert reason(tmp_path / "cut.dcm") == "damaged or truncated DICOM"
    (tmp_path / "junk.dcm").write_bytes(b"\0" * 128 + b"DICM" + bytes(range(256)))
    assert "DICOM" in reason(tmp_path / "junk.dcm")
    assert reason(save(tmp_path / "report.dcm", Rows=None)) == "DICOM without pixels"
    empty = dicom(HU)
    del empty.PixelData
    empty.save_as(tmp_path / "empty.dcm", enforce_file_format=True)
    assert reason(tmp_path / "empty.dcm") == "DICOM without pixels"
    seg = save(tmp_path / "seg.dcm", SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    assert reason(seg) == "a DICOM segmentation, not an image"
    bomb = save(tmp_path / "bomb.dcm", Rows=60_000, Columns=60_000)
    assert reason(bomb) == "3600 megapixels, over the limit of 100; cut it into tiles, or shrink it"
    coded = dicom(HU)
    coded.file_meta.TransferSyntaxUID = JPEGLSLossless
    coded["PixelData"].is_undefined_length = True
    from pydicom.encaps import encapsulate

    coded.PixelData = encapsulate([b"\xff\xd8\xff\xf7" + b"\0" * 60])
    coded.save_as(tmp_path / "coded.dcm", enforce_file_format=True)
    assert "compressed by JPEG-LS Lossless" in reason(tmp_path / "coded.dcm")
    with pytest.raises(UnreadableImage, match="which is not supported for masks and maps"):
        read_mask(tmp_path / "whole.dcm")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.dcm"
    content = bytearray(save(path, WindowCenter=40, WindowWidth=400).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(132, 900))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(140, len(content)))])
    try:
        image = read_image(path)
    except UnreadableImage as error:
        text = str(error)
    else:
        text = str(image.dtype)
    assert MARKER not in text


def test_nothing_of_the_patient_leaves_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        save(folder / f"{index}.dcm", np.roll(HU, index), WindowCenter=40, WindowWidth=400)
    save(folder / "odd.dcm", StudyInstanceUID=MARKER, WindowWidth=400, WindowCenter=40)
    (folder / "cut.dcm").write_bytes((folder / "0.dcm").read_bytes()[:900])
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        result = scan(folder)
    assert len(result.manifest) == 4
    assert result.unreadable == [("cut.dcm", "damaged or truncated DICOM")]
    assert set(result.manifest.column("format")) == {"DICOM"}
    assert set(result.manifest.column("bits")) == {16}
    everything = (
        f"{result.manifest.table.to_pydict()}{capsys.readouterr()}{caplog.text}{[str(w.message) for w in recorded]}"
    )
    for secret in ("Planted", "19500101"):
        assert secret not in everything


@pytest.mark.data
def test_of_the_real_files_all_are_read_but_those_with_a_reason(real_data: Path) -> None:
    read, refused = [], {}
    for path in sorted((real_data / "dicom").rglob("*.dcm")):
        try:
            image = read_image(path)
        except UnreadableImage as error:
            refused[path.name] = error.reason
        else:
            assert image.ndim == 3
            assert image.max() > image.min(), path
            read.append(path.name)
            assert is_dicom(path)
    assert len(read) >= 39
    known = ("no codec is installed", "segmentation", "fit no 16-bit range", "not a JPEG")  # the last: without preamble
    assert all(any(text in why for text in known) for why in refused.values()), refused
