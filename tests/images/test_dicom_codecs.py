"""DICOM in each transfer syntax: the values of pydicom, and the reason where no codec decodes a file."""

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import (
    HTJ2K,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from dinomed.images.read import IntensityConfig, UnreadableImage, read_image
from dinomed.isolation.images import read_image_isolated

MARKER = "Planted^Marker"
GRAY = (np.arange(48 * 40).reshape(48, 40) * 37 % 4096).astype(np.uint16)
COLOUR = np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)


def dicom(values: np.ndarray, syntax: UID = ExplicitVRLittleEndian, bits: int | None = None) -> Dataset:
    """An uncompressed picture, gray (H, W) or colour (H, W, 3), with a window over all values."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = syntax
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["one"])
    file.PatientName = file.PatientID = MARKER
    file.Rows, file.Columns = values.shape[:2]
    colour = values.ndim == 3
    file.SamplesPerPixel, file.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        file.PlanarConfiguration = 0
    file.BitsAllocated = 8 * values.dtype.itemsize
    file.BitsStored = bits or file.BitsAllocated
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, 0
    file.PixelData = values.tobytes()
    if not colour:
        file.WindowCenter, file.WindowWidth, file.VOILUTFunction = (
            2**file.BitsStored / 2 - 0.5,
            2**file.BitsStored - 1,
            "LINEAR_EXACT",
        )
    return file


def write(path: Path, file: Dataset) -> Path:
    with warnings.catch_warnings(action="ignore"):
        file.save_as(path, enforce_file_format=True)
    return path


def compressed(path: Path, values: np.ndarray, syntax: UID) -> Path:
    """Write a picture in a transfer syntax, by pydicom's encoders or by GDCM."""
    bits = 12 if values.dtype == np.uint16 else None
    if syntax == ExplicitVRBigEndian:
        file = dicom(values, syntax, bits)
        file.PixelData = values.astype(values.dtype.newbyteorder(">")).tobytes()
        return write(path, file)
    if not syntax.is_encapsulated:
        return write(path, dicom(values, syntax, bits))
    file = dicom(values, bits=bits)
    if syntax != JPEGLosslessSV1:
        file.compress(syntax, encoding_plugin={RLELossless: "pydicom"}.get(syntax, ""))
        return write(path, file)
    gdcm = pytest.importorskip("gdcm")
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(write(path, file)))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()
    return path


@pytest.mark.parametrize(
    ("syntax", "package"),
    [
        (ImplicitVRLittleEndian, None), (ExplicitVRLittleEndian, None), (ExplicitVRBigEndian, None),
        (DeflatedExplicitVRLittleEndian, None), (RLELossless, None), (JPEG2000Lossless, "openjpeg"),
        (JPEGLSLossless, "jpeg_ls"), (JPEGLosslessSV1, "gdcm"),
    ],
)  # fmt: skip
def test_gray_and_colour_come_back_unchanged_from_every_lossless_syntax(
    tmp_path: Path, syntax: UID, package: str | None
) -> None:
    if package:
        pytest.importorskip(package)
    colour = compressed(tmp_path / "colour.dcm", COLOUR, syntax)
    assert dcmread(colour).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read_image(colour), COLOUR)
    gray = compressed(tmp_path / "gray.dcm", GRAY, syntax)
    assert dcmread(gray).file_meta.TransferSyntaxUID == syntax
    shown = read_image_isolated(gray, channels=1, intensity=IntensityConfig(bits=16))[..., 0]
    np.testing.assert_allclose(shown, GRAY / 4095, atol=1e-6)  # float32


def test_near_lossless_jpeg_ls_has_the_values_of_pydicom(tmp_path: Path) -> None:
    pytest.importorskip("jpeg_ls")
    file = dicom(GRAY, bits=12)
    file.compress(JPEGLSNearLossless, jls_error=3)
    path = write(tmp_path / "a.dcm", file)
    shown = read_image(path, channels=1, intensity=IntensityConfig(bits=16))[..., 0] * 4095
    assert np.abs(shown - GRAY).max() <= 3.01  # the error that was allowed, and float32


def encoded(path: Path, syntax: str, frame: bytes, **elements: Any) -> str:
    """Write a file of one encoded frame, and return the reason why it is not read."""
    file = dicom(GRAY, HTJ2K)
    for name, value in elements.items():
        setattr(file, name, value)
    file.PixelData = encapsulate([frame])
    file["PixelData"].is_undefined_length = True
    content = write(path, file).read_bytes()  # pydicom writes known syntaxes only
    assert len(syntax) <= len(HTJ2K) == 23
    path.write_bytes(content.replace(HTJ2K.encode(), syntax.encode().ljust(23, b"\0"), 1))
    with pytest.raises(UnreadableImage) as refused:
        read_image(path)
    assert MARKER not in str(refused.value)
    assert "\n" not in refused.value.reason
    return refused.value.reason


@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2.4.57", *(f"1.2.840.10008.1.2.4.{n}" for n in (70, 80, 81, 201, 203))]
)
def test_a_missing_codec_is_named_by_the_extra_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: str
) -> None:
    monkeypatch.setattr(get_decoder(UID(syntax)), "_available", {})
    reason = encoded(tmp_path / "a.dcm", syntax, b"\0" * 64)
    assert reason.startswith(f"DICOM compressed by {UID(syntax).name}, and its codec is not installed; ")
    assert reason.endswith("pip install 'dinomed[dicom]'")
    assert "libjpeg" not in reason  # a codec of pydicom under the GPL


def test_a_damaged_file_is_not_called_a_missing_codec_if_another_package_decodes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = get_decoder(JPEGLSLossless)
    if "gdcm" not in decoder.available_plugins:
        pytest.skip("GDCM is not installed")
    monkeypatch.setitem(sys.modules, "jpeg_ls", None)
    monkeypatch.setattr(decoder, "_available", {"gdcm": decoder._available["gdcm"]})
    assert encoded(tmp_path / "a.dcm", JPEGLSLossless, b"\0" * 64) == "damaged or truncated DICOM"


def test_what_no_codec_decodes_has_a_true_reason(tmp_path: Path) -> None:
    path, frame = tmp_path / "a.dcm", b"\0" * 64
    deflated_frames, one_bit = "1.2.840.10008.1.2.8.1", {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}
    broadcast = UID("1.2.840.10008.1.2.7.1")
    expected = f"DICOM compressed by {broadcast.name}, which dinomed does not decode; convert its transfer syntax"
    assert encoded(path, broadcast, frame) == expected
    assert "by transfer syntax 1.2.840.10008.1.2.8.1, which" in encoded(path, deflated_frames, frame)
    assert "compressed by an unknown method, which" in encoded(path, MARKER, frame)
    assert "1-bit pixels compressed by RLE" in encoded(path, RLELossless, frame, **one_bit)
    twelve = encoded(path, JPEGExtended12Bit, frame, BitsStored=12, HighBit=11)
    assert "12-bit pixels compressed by lossy JPEG" in twelve
    # a damaged frame is not called a missing codec
    assert encoded(path, RLELossless, frame) == "damaged or truncated DICOM"
    assert encoded(path, JPEG2000Lossless, frame) == "damaged or truncated DICOM"


def test_a_frame_of_jpeg_ls_of_another_size_than_declared_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    header = b"\xff\xd8\xff\xf7\0\x0b\x08" + (30_000).to_bytes(2, "big") * 2 + b"\x01\x01\x11\0"
    reason = encoded(tmp_path / "a.dcm", JPEGLSLossless, header + b"\0" * 60)
    assert reason == "the header declares 40x48 px, its JPEG frame has 30000x30000"
