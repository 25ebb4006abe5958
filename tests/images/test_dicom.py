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
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from dinomed.datasets.scan.scan import scan
from dinomed.images.dicom.spacing import PixelSpacing, read_frame_spacings, read_pixel_spacing
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


def region(**elements: Any) -> Dataset:
    """A calibrated two-dimensional region of an ultrasound image, 0.25 mm a column and 0.5 mm a row."""
    item = Dataset()
    item.RegionSpatialFormat, item.PhysicalUnitsXDirection, item.PhysicalUnitsYDirection = 1, 3, 3
    item.PhysicalDeltaX, item.PhysicalDeltaY = 0.025, -0.05
    for name, value in elements.items():
        setattr(item, name, value)
    return item


def test_each_frame_has_its_spacing_and_a_mask_that_of_its_regions(tmp_path: Path) -> None:
    groups = []
    for spacing in ([0.3, 0.4], [0.6, 0.8]):
        measures, group = Dataset(), Dataset()
        measures.PixelSpacing = spacing
        group.PixelMeasuresSequence = [measures]
        groups.append(group)
    spacings = read_frame_spacings(save(tmp_path / "enhanced", PerFrameFunctionalGroupsSequence=groups))
    assert spacings is not None
    assert spacings.of(1) == PixelSpacing(0.6, 0.8, "patient")
    assert spacings.of(2) is None

    names = ("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1")
    upper = region(**dict(zip(names, (0, 0, 15, 7), strict=True)))
    lower = region(**dict(zip(names, (0, 8, 15, 11), strict=True)), PhysicalDeltaX=0.05)
    doppler = region(**dict(zip(names, (0, 12, 15, 13), strict=True)), RegionSpatialFormat=3)
    spacings = read_frame_spacings(save(tmp_path / "us", SequenceOfUltrasoundRegions=[upper, lower, doppler]))
    assert spacings is not None
    expected = {
        (2, 8): 0.25, (8, 12): 0.5, (0, 0): 0.25,
        (6, 9): None, (12, 14): None, (7, 13): None, (13, 16): None,  # several scales, spectral, outside
    }  # fmt: skip
    for (top, bottom), columns_mm in expected.items():
        inside = np.zeros((16, 16), np.uint8)
        inside[top:bottom, 3:9] = 1
        spacing = spacings.of(5, inside)
        assert (None if spacing is None else spacing.columns_mm) == columns_mm, (top, bottom)
    assert spacings.of(5) is None
    spacings = read_frame_spacings(save(tmp_path / "one", SequenceOfUltrasoundRegions=[upper]))
    assert spacings is not None
    assert spacings.of() == PixelSpacing(0.5, 0.25, "ultrasound")
    for (top, bottom), spacing in {(0, 8): spacings.of(), (7, 9): None, (9, 12): None, (0, 0): spacings.of()}.items():
        inside = np.zeros((16, 16), bool)
        inside[top:bottom, 3:9] = True
        assert spacings.of(0, inside) == spacing, (top, bottom)


def test_a_damaged_region_is_not_read_where_the_frames_have_a_spacing(tmp_path: Path) -> None:
    damaged = region()
    damaged.add_new("RegionLocationMinX0", "LO", "none")
    path = save(tmp_path / "a.dcm", PixelSpacing=[0.5, 0.25], SequenceOfUltrasoundRegions=[damaged])
    assert read_pixel_spacing(path) == PixelSpacing(0.5, 0.25, "patient")
    with pytest.raises(UnreadableImage, match="damaged"):
        read_pixel_spacing(save(tmp_path / "b.dcm", SequenceOfUltrasoundRegions=[damaged]))


def test_a_spacing_says_where_it_holds(tmp_path: Path) -> None:
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [0.3, 0.4]
    shared.PixelMeasuresSequence = [measures]
    imager = {"ImagerPixelSpacing": [0.5, 0.25]}
    doppler = region(RegionSpatialFormat=3, PhysicalUnitsXDirection=4)
    expected = {
        "plain": ({"PixelSpacing": [0.5, 0.25]}, PixelSpacing(0.5, 0.25, "patient")),
        "enhanced": ({"SharedFunctionalGroupsSequence": [shared]}, PixelSpacing(0.3, 0.4, "patient")),
        "detector": (imager, PixelSpacing(0.5, 0.25, "detector")),
        "magnified": (
            imager | {"EstimatedRadiographicMagnificationFactor": 2.0},
            PixelSpacing(0.25, 0.125, "estimated"),
        ),
        "projection": ({"PixelSpacing": [0.5, 0.25], "Modality": "DX"}, PixelSpacing(0.5, 0.25, "unknown")),
        "uncorrected": (imager | {"PixelSpacing": [0.5, 0.25]}, PixelSpacing(0.5, 0.25, "detector")),
        "calibrated": (
            imager | {"PixelSpacing": [0.5, 0.25], "PixelSpacingCalibrationType": "FIDUCIAL"},
            PixelSpacing(0.5, 0.25, "patient"),
        ),
        "ultrasound": ({"SequenceOfUltrasoundRegions": [region(), region()]}, PixelSpacing(0.5, 0.25, "ultrasound")),
        "duplex": ({"SequenceOfUltrasoundRegions": [region(), doppler]}, None),
        "two scales": ({"SequenceOfUltrasoundRegions": [region(), region(PhysicalDeltaX=0.03)]}, None),
        "no unit": ({"SequenceOfUltrasoundRegions": [region(PhysicalUnitsXDirection=0)]}, None),
        "zero": ({"PixelSpacing": [0, 0.25]}, None),
        "none": ({}, None),
    }
    for name, (elements, spacing) in expected.items():
        path = save(tmp_path / name, **elements)
        assert read_pixel_spacing(path) == spacing, name
    assert PixelSpacing(0.5, 0.25, "ultrasound").in_patient
    for plane in ("detector", "estimated", "unknown"):
        assert not PixelSpacing(0.5, 0.25, plane).in_patient
    (tmp_path / "text").write_text("no DICOM")
    assert read_pixel_spacing(tmp_path / "text") is None


def test_padding_is_black_and_no_part_of_the_percentiles(tmp_path: Path) -> None:
    padded = HU.copy()
    padded[:10] = -2000
    low, high = np.percentile(padded[10:], (0.5, 99.5))
    expected = np.clip((padded - low) / (high - low), 0, 1) * 255
    for mode in ("MONOCHROME2", "MONOCHROME1"):
        # the value is also written as the unsigned number of the same bits
        for value, unsigned in ((-2000, False), (2**16 - 2000, True)):
            file = dicom(padded, PhotometricInterpretation=mode)
            file.add_new("PixelPaddingValue", "US" if unsigned else "SS", value)
            file.save_as(tmp_path / "a.dcm", enforce_file_format=True)
            shown = read_image(tmp_path / "a.dcm", channels=1)[..., 0]
            assert not shown[:10].any(), mode
            wanted = 255 - expected[10:] if mode == "MONOCHROME1" else expected[10:]
            np.testing.assert_allclose(shown[10:], wanted, atol=0.51)  # rounded to whole numbers
    limited = save(tmp_path / "b.dcm", padded, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1000)
    assert read_image(limited, channels=1)[padded <= -1000].max() == 0


def test_colours_of_more_than_8_bits_have_the_range_of_their_stored_bits(tmp_path: Path) -> None:
    for dtype, bits in ((np.uint16, 12), (np.uint16, 16), (np.uint32, 32)):
        picture = np.random.default_rng(0).integers(0, 2 ** (bits - 3), (20, 30, 3)).astype(dtype)
        path = save(tmp_path / "a.dcm", picture, SamplesPerPixel=3, BitsStored=bits, HighBit=bits - 1)
        shown = read_image(path, intensity=IntensityConfig(bits=16))
        np.testing.assert_allclose(shown, picture / (2.0**bits - 1), atol=1e-7)  # float32 beside float64


def test_a_file_without_a_preamble_is_read(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.dcm", WindowCenter=40, WindowWidth=400)
    bare = tmp_path / "bare.dcm"
    bare.write_bytes(whole.read_bytes()[132:])
    np.testing.assert_array_equal(read_image(bare), read_image(whole))
    assert (read_header(bare), read_pixel_spacing(bare)) == (read_header(whole), None)
    data_set = tmp_path / "data_set.dcm"
    data_set.write_bytes(b"\x08\0\0\0UL\x04\0\x10\0\0\0" + whole.read_bytes()[300:])
    assert reason(data_set) == "a DICOM data set without file meta information; its transfer syntax is unknown"


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
    with pytest.raises(UnreadableImage, match="a DICOM image; masks are read from DICOM segmentations"):
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
