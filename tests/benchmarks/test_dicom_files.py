"""The table of DICOM files: equal values are called equal and others not, and the real files are read or refused."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def dicom_files(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("dicom_files")


def test_a_difference_to_pydicom_is_seen(dicom_files: ModuleType) -> None:
    ours, padding = np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5, 1), np.zeros((4, 5), bool)
    expected = ours[..., 0].astype(np.float64)
    assert dicom_files.difference(ours, expected, padding, "MONOCHROME2") == 0
    assert dicom_files.difference(1 - ours, expected, padding, "MONOCHROME1") < 1e-6
    assert dicom_files.difference(ours, expected, padding, "MONOCHROME1") == 1
    padding[3, 4] = True  # white, and should be black
    assert dicom_files.difference(ours, expected, padding, "MONOCHROME2") == 1
    unequal = dicom_files.Comparison("a.dcm", "RLE Lossless", "RGB, 8 bits", 1, difference=0.01)
    refused = dicom_files.Comparison("b.dcm", "RLE Lossless", "RGB, 8 bits", 1, reason="truncated")
    assert not unequal.equal
    assert dicom_files.table([unequal, refused])[2:] == [
        "| RLE Lossless | RGB, 8 bits | `a` | yes | no |",
        "| RLE Lossless | RGB, 8 bits | `b` | no: truncated |  |",
    ]


@pytest.mark.data
def test_the_real_files_have_the_values_of_pydicom_or_a_reason(dicom_files: ModuleType, real_data: Path) -> None:
    for package in ("gdcm", "jpeg_ls", "openjpeg"):
        pytest.importorskip(package)
    paths = sorted((real_data / "dicom").rglob("*.dcm"))
    assert len(paths) == 67
    results = {path.name: dicom_files.compare_with_pydicom(path) for path in paths}
    refused = {name: result.reason for name, result in results.items() if result.reason}
    assert refused.pop("OT-PAL-8-face.dcm").startswith("a DICOM data set without file meta information")
    for name in ("liver_rle.dcm", "liver_nonbyte_aligned_rle.dcm"):
        assert refused.pop(name).startswith("1-bit pixels compressed by RLE")
    for name in ("liver_deflate.dcm", "liver_nonbyte_aligned_deflate.dcm"):
        assert refused.pop(name).startswith("DICOM compressed by transfer syntax 1.2.840.10008.1.2.8.1")
    assert not refused
    unequal = {name: result.difference for name, result in results.items() if not result.reason and not result.equal}
    assert not unequal
