"""Marks in headers of NIfTI files, in DICOM series, in names and in tables are in no output of further commands."""

import csv
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

Run = Callable[..., tuple[int, str, str]]
HERE = Path(__file__).parent
marks = runpy.run_path(str(HERE / "test_privacy.py"))
MARK, NAME_MARK, UID_ROOT, DATE = (marks[name] for name in ("MARK", "NAME_MARK", "UID_ROOT", "DATE"))
holds, files_with, files_with_age, plant_images, plant_video, plant = (
    marks[name] for name in ("holds", "files_with", "files_with_age", "plant_images", "plant_video", "plant")
)
OTHER, QUICK = marks["OTHER"], marks["QUICK"]


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
        assert code == 0, f"{arguments[:2]}: {stderr} {stdout}"
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


def depth_table(lesions: Path) -> Path:
    """Write a depth map for each image, with a mark in its name and its metadata, and a column of them."""
    with open(lesions / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    (lesions / "depth").mkdir()
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", MARK)
    for number, row in enumerate(rows):
        size = Image.open(lesions / row["mask"]).size
        levels = np.random.default_rng(number).integers(100, 900, (size[1], size[0])).astype(np.uint16)
        row["depth"] = f"depth/{NAME_MARK}-{number}.png"
        Image.fromarray(levels).save(lesions / row["depth"], pnginfo=text)
    with open(lesions / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return lesions / "labels.csv"


NAMED = (
    "curated.parquet", "d.parquet", "depth/", "hits/results.json", "idx/index.safetensors", "folds_out/predictions.csv",
    "folds_table/", "videos.parquet", "folds.parquet",
)  # fmt: skip
"""Outputs that name files by design, as in `test_privacy`."""
EXAMINED = (
    "d.parquet", "slices/manifest.csv", "volumes", "folds", "dep", "idx", "export_group", "export_monai",
    "curated.parquet",
)  # fmt: skip


def further_commands(lesions: Path, volumes: Path, clips: Path, folder: Path, out: Path) -> list[tuple[object, ...]]:
    """Return calls of commands and of their options that `test_privacy` leaves out."""
    d, ssl, first = out / "d.parquet", folder / "ssl", sorted(lesions.rglob("*.jpg"))[:2]
    small = ("--set", "quality.min_short_side_px=32")
    return [
        ("scan", lesions, "--labels", lesions / "labels.csv", "--group", "patient", "--keep", "sex", "--keep", "depth",
         "-o", d),
        ("scan", clips, "--videos", "--min-tissue", "0", "-o", out / "videos.parquet"),
        ("slices", volumes, "-o", out / "slices", "--neighbours"),
        ("predict", folder / "seg", out / "slices" / "manifest.csv", "--volumes", "-o", out / "volumes"),
        ("predict", folder / "cls", out / "videos.parquet", "--unit", "group", "-o", out / "groups"),
        ("train", "classify", "-b", ssl, "--data", d, "--folds", "2", "--head", "knn", "-o", out / "folds"),
        ("predict", out / "folds", d, "-o", out / "folds_out"),
        ("evaluate", out / "folds", "--data", d, "-o", out / "folds_report", "--resamples", "10"),
        ("train", "depth", "-b", ssl, "--data", d, "-o", out / "dep", "--set", "scale=0.01", *QUICK),
        ("predict", out / "dep", d, "-o", out / "depth"),
        ("evaluate", out / "dep", "--data", d, "-o", out / "depth_report", "--resamples", "10"),
        ("train", "classify", "-b", ssl, "--data", d, "--unit", "group", "--head", "logistic", "-o", out / "grouped"),
        ("evaluate", out / "grouped", "--data", d, "--by", "sex", "-o", out / "group_report", "--resamples", "10"),
        ("show", "attention", first[0], "-b", ssl, "-o", out / "attention.html"),
        ("show", "match", *first, "-b", ssl, "-o", out / "match.html"),
        ("show", "similarity", *first, "-b", ssl, "-o", out / "similarity.html"),
        ("index", d, "-b", ssl, "-o", out / "idx"),
        ("search", d, "--index", out / "idx", "--evidence", "-k", "2", "-o", out / "hits"),
        ("search", d, "--index", out / "idx", "--evaluate"),
        ("export", out / "grouped", "--format", "safetensors", "-o", out / "export_group"),
        ("export", folder / "seg", "--format", "monai", "-o", out / "export_monai"),
        ("curate", "--pool", d, "--trusted", folder / "derm.parquet", "-o", out / "curated.parquet", *small),
        *(("doctor", out / name) for name in EXAMINED),
    ]  # fmt: skip


@pytest.mark.long
def test_no_mark_is_in_an_output_of_further_commands(
    user_folder: Path, volumes: Path, tmp_path: Path, run: Run
) -> None:
    lesions, clips, out = tmp_path / "lesions", tmp_path / "clips", tmp_path / "out"
    shutil.copytree(user_folder / "lesions", lesions)
    plant_images(lesions)
    plant(lesions)
    depth_table(lesions)
    clips.mkdir()
    plant_video(clips / f"{NAME_MARK}.mp4")
    check(out, run_all(run, further_commands(lesions, volumes, clips, user_folder, out)), NAMED)
    assert len([path for path in out.rglob("*") if path.is_file()]) > 150
