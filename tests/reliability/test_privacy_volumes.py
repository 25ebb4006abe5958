"""Marks in headers and extensions of NIfTI files, in DICOM series and in names are in no output of `slices`."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Run = Callable[..., tuple[int, str, str]]
HERE = Path(__file__).parent
marks = runpy.run_path(str(HERE / "test_privacy.py"))
MARK, NAME_MARK, UID_ROOT, DATE = (marks[name] for name in ("MARK", "NAME_MARK", "UID_ROOT", "DATE"))
holds, files_with, contents = (marks[name] for name in ("holds", "files_with", "contents"))
OTHER = {"DT": f"{DATE}031733.1854", "TM": "031733.1854", "AS": "137Y", "DS": f"{DATE}.5", "IS": f"{DATE}17"}
"""Marks of DICOM date-times, times, ages, decimal and integer numbers."""


def files_with_age(root: Path) -> list[str]:
    """Return the files below a folder that hold the mark of ages, which is no part of a longer word or of base64."""
    age = re.compile(rb"(?<![0-9A-Za-z+/=])" + OTHER["AS"].encode() + rb"(?![0-9A-Za-z+/=])")
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return [str(path) for path in paths if any(age.search(part) for part in contents(path.read_bytes()))]


def plant_nifti(path: Path, seed: int) -> int:
    """Write a NIfTI file with a mark in each field of text of its header and in two extensions; return their number."""
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(seed).integers(0, 1500, (40, 36, 4)).astype(np.int16)
    image = nibabel.Nifti1Image(values, np.diag([-2.0, -2.0, 5.0, 1.0]))
    for name, size in (("descrip", 80), ("aux_file", 24), ("db_name", 18), ("intent_name", 16), ("data_type", 10)):
        image.header[name] = f"{MARK}-{name}"[: size - 1]
    for code in ("comment", "dicom"):
        content = f"{MARK} in an extension".encode()
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(code, content))
    nibabel.save(image, path)
    return int(path.read_bytes().count(MARK.encode()))


def plant_series(folder: Path) -> None:
    """Write a CT series with marks in elements of every type that can name a patient, a place or a time."""
    write_series = runpy.run_path(str(HERE.parent / "volumes" / "made.py"))["write_series"]
    values = np.random.default_rng(5).integers(0, 1500, (4, 36, 40)).astype(np.int16)
    write_series(
        folder, values, uid=f"{UID_ROOT}.7", patient=MARK, PatientName=f"{MARK}^A", PatientBirthDate=DATE,
        PatientAge=OTHER["AS"], StudyTime=OTHER["TM"], AcquisitionDateTime=OTHER["DT"], PatientWeight=OTHER["DS"],
        AcquisitionNumber=OTHER["IS"], InstitutionName=MARK, SeriesDescription=MARK, StudyID=MARK,
        AccessionNumber=MARK, OperatorsName=MARK, ImageComments=MARK, StationName=MARK, ProtocolName=MARK,
    )  # fmt: skip


def check(out: Path, text: str, named: tuple[str, ...]) -> None:
    """Raise if an output holds a mark; names of files are allowed in the outputs `named`, and in printed paths."""
    assert not holds(text.encode(), MARK)
    for mark in (MARK, UID_ROOT, DATE, OTHER["TM"]):
        assert files_with(out, mark) == [], mark
    assert files_with_age(out) == []
    assert [name for name in files_with(out, NAME_MARK) if not name.startswith(named)] == []


def run_all(run: Run, calls: list[tuple[object, ...]]) -> str:
    """Run commands, and return all that they print."""
    text = ""
    for arguments in calls:
        code, stdout, stderr = run(*arguments)
        assert code == 0, f"{arguments[:2]}: {stderr}"
        text += stdout + stderr
    return text


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    folder = tmp_path / "volumes"
    folder.mkdir()
    assert plant_nifti(folder / f"{NAME_MARK}-a.nii", 0) == 7
    plant_nifti(folder / f"{NAME_MARK}-b.nii.gz", 1)
    plant_series(folder / f"{NAME_MARK}-ct")
    return folder


def test_slices_hold_nothing_of_headers_and_names(volumes: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "id.key").write_text("0123456789abcdef" * 4)
    calls = [
        ("slices", volumes, "-o", out / "plain"),
        ("slices", volumes, "-o", out / "k", "--id-key", tmp_path / "id.key"),
    ]
    check(out, run_all(run, calls), ())
    assert len(list(out.rglob("*.png"))) == 2 * 12
    assert files_with(volumes, MARK)  # the search finds what is there
    assert files_with_age(volumes)
