"""Groups of DICOM files by their patients, which no output holds."""

import hashlib
import hmac
import runpy
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dinomed
from dinomed.apps.api.data.datasets import scan_with_report
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.open import open_dataset
from dinomed.datasets.splits import RATIOS
from dinomed.errors import UsageError

TESTS = Path(__file__).parents[2]
write_series = runpy.run_path(str(TESTS / "volumes" / "made.py"))["write_series"]
write_cine = runpy.run_path(str(TESTS / "video" / "cine.py"))["write_dicom"]
EVERY = {"fps": 0, "duplicate_bits": -1, "min_sharpness": 0, "min_tissue": 0, "min_luminance": 0}
PATIENT = "PLANTED-{}"


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Three CT series of three patients, and a picture that is no DICOM."""
    folder = tmp_path / "ct"
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 1500, (6, 8, 9)).astype(np.int16)
        write_series(folder / f"s{number}", values, uid=f"1.2.{number}", patient=PATIENT.format(number),
                     StudyInstanceUID=f"1.9.{number}")  # fmt: skip
    Image.fromarray(values[0].astype(np.uint8)).save(folder / "plain.png")
    return folder


def by_series(manifest: Manifest, column: str) -> dict[str, set[str | None]]:
    values = defaultdict(set)
    for image, value in zip(manifest.column("image"), manifest.column(column), strict=True):
        values[image.split("/")[0]].add(value)
    return dict(values)


def test_the_images_of_a_patient_are_in_one_split_and_no_output_holds_the_patient(series: Path, tmp_path: Path) -> None:
    result = scan_with_report(series, out=tmp_path / "m.csv", ratios=RATIOS)
    groups = by_series(result.manifest, "group")
    assert groups.pop("plain.png") == {None}
    assert [len(names) for names in groups.values()] == [1, 1, 1]
    assert len(set.union(*groups.values())) == 3
    splits = by_series(result.manifest, "split")
    assert all(len(names) == 1 for names in splits.values())
    assert any(line.startswith("groups of 18 DICOM images are by Patient ID") for line in result.notes)
    assert "PLANTED" not in str([result.notes, result.warnings]) + (tmp_path / "m.csv").read_text()
    kept = dinomed.scan(series, keep_ids=True)
    assert "PLANTED" not in str(kept.table.to_pydict())
    assert len(set.union(*by_series(kept, "group").values())) == 4
    (tmp_path / "id.key").write_bytes(b"a key of sixteen bytes")
    keyed = by_series(dinomed.scan(series, id_key=tmp_path / "id.key"), "group")
    message = b"group\0" + PATIENT.format(1).encode()
    assert keyed["s1"] == {hmac.new(b"a key of sixteen bytes", message, hashlib.sha256).hexdigest()[:32]}


def test_a_table_or_none_replaces_the_patients(series: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f"image,case\ns0/000.dcm,case7\ns0/001.dcm,\ns1/003.dcm,{PATIENT.format(1)}\n")
    groups = by_series(dinomed.scan(series, table, group="case", keep_ids=True), "group")
    assert (groups["s0"], groups["s1"]) == ({"case7"}, {PATIENT.format(1)})  # also those that the table does not name
    assert len(groups["s2"]) == 1
    assert "PLANTED" not in str(groups["s2"])
    result = scan_with_report(series, labels=table, group="case")
    groups = by_series(result.manifest, "group")
    assert [len(names) for names in groups.values()] == [1, 1, 1, 1]
    assert len(set.union(*groups.values())) == 4
    assert any(line.startswith("10 DICOM images without a group have the group of their") for line in result.notes)
    assert any(line.startswith("groups of 6 DICOM images are by Patient ID") for line in result.notes)
    assert set(dinomed.scan(series, group="none").column("group")) == {None}


def test_one_patient_id_in_several_studies_gives_a_warning(tmp_path: Path) -> None:
    """De-identification often writes one Patient ID into all files."""
    values = np.random.default_rng(0).integers(0, 1500, (3, 8, 9)).astype(np.int16)
    for number in range(2):
        write_series(tmp_path / "ct" / f"s{number}", values, uid=f"1.2.{number}", patient="ANONYMOUS",
                     StudyInstanceUID=f"1.9.{number}")  # fmt: skip
    result = scan_with_report(tmp_path / "ct")
    assert len(set(result.manifest.column("group"))) == 1
    (line,) = (line for line in result.warnings if "have one Patient ID" in line)
    assert line.startswith("the 6 DICOM images of 2 studies have one Patient ID and are one group")
    assert "ANONYMOUS" not in line
    one = scan_with_report(tmp_path / "ct" / "s0")
    assert not any("have one Patient ID" in line for line in one.warnings)


def test_several_groups_of_a_patient_are_kept_with_a_warning(series: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("image,side\ns0/002.dcm,left\ns0/001.dcm,right\nplain.png,PLANTED-2\n")
    result = scan_with_report(series, labels=table, group="side", keep_ids=True)
    groups = dict(zip(result.manifest.column("image"), result.manifest.column("group"), strict=True))
    assert (groups["s0/001.dcm"], groups["s0/002.dcm"], groups["s0/005.dcm"]) == ("right", "left", "right")
    assert groups["s2/000.dcm"] == groups["plain.png"] == "PLANTED-2"  # the user named it
    assert any(line.startswith("4 DICOM images without a group have a patient whose") for line in result.warnings)
    assert "PLANTED" not in str([result.notes, result.warnings])


def test_an_unknown_patient_is_that_of_its_study_or_the_study(series: Path) -> None:
    values = np.random.default_rng(9).integers(0, 1500, (2, 8, 9)).astype(np.int16)
    for name, study in (("same_study", "1.9.0"), ("other_study", "1.9.7")):
        write_series(series / name, values + len(name), uid=f"1.3.{len(name)}", patient="", StudyInstanceUID=study)
    groups = by_series(dinomed.scan(series), "group")
    assert groups["same_study"] == groups["s0"]
    assert len(groups["other_study"]) == 1
    assert groups["other_study"] not in [groups["s0"], groups["s1"], groups["s2"], {None}]


def test_a_patient_in_two_given_splits_is_refused_where_splits_are_wanted(series: Path) -> None:
    for split in ("train", "test"):
        (series / split).mkdir()
    for name, split in (("s0/000.dcm", "train"), ("s0/001.dcm", "test")):
        (series / name).rename(series / split / "a.dcm")
    with pytest.raises(UsageError, match=r"one group has .*`group=none` leaves them without a group") as refused:
        dinomed.scan(series)
    assert "PLANTED" not in str(refused.value)
    assert set(dinomed.scan(series, group="none").column("split")) == {"train", "test", None}
    assert len(open_dataset(series)) == 19  # without training there is nothing to refuse


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Five DICOM clips: two of one patient, one of another, two of unknown patients."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number, patient in enumerate(["PLANTED-A", "PLANTED-A", "PLANTED-B", "", ""]):
        frames = np.random.default_rng(number).integers(0, 200, (4, 24, 32)).astype(np.uint8)
        write_cine(folder / f"{number}.dcm", frames, PatientID=patient)
    return folder


def test_clips_of_a_patient_are_one_group(clips: Path) -> None:
    result = scan_with_report(clips, videos=True, ratios=RATIOS, **EVERY)
    groups = by_series(result.manifest, "group")
    assert groups["0.dcm"] == groups["1.dcm"]
    assert len(set.union(*groups.values())) == 4
    assert by_series(result.manifest, "split")["0.dcm"] == by_series(result.manifest, "split")["1.dcm"]
    assert any(line.startswith("2 videos are groups of their own; if a patient has several") for line in result.notes)


def test_clips_of_a_patient_have_the_group_of_the_one_that_the_table_names(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,case\n1.dcm/frame_000002,case7\n")
    manifest = dinomed.scan(clips, tmp_path / "t.csv", group="case", videos=True, keep_ids=True, **EVERY)
    groups = by_series(manifest, "group")
    assert groups["0.dcm"] == groups["1.dcm"] == {"case7"}
    assert len(set.union(*groups.values())) == 4


def test_written_frames_of_a_patient_are_one_group_in_a_folder_for_each_clip(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "id.key").write_bytes(b"a key of sixteen bytes")
    written = dinomed.frames(clips, tmp_path / "out", **EVERY)
    groups = {Path(path).name: group for path, group in written.groups.items()}
    assert groups["0.dcm"] == groups["1.dcm"]
    assert len(set(groups.values())) == 4
    assert len(set(written.videos.values())) == 5
    assert set(written.manifest.column("group")) == set(groups.values())
    assert set(written.manifest.column("video")) == set(written.videos.values())
    for options in ({"keep_ids": True}, {"id_key": tmp_path / "id.key"}):
        written = dinomed.frames(clips, tmp_path / "out", overwrite=True, **EVERY, **options)
        assert b"PLANTED" not in (tmp_path / "out" / "manifest.csv").read_bytes()
        assert len(list((tmp_path / "out").glob("*/*.png"))) == 20  # those of the result before are removed
    scanned = dinomed.scan(clips, videos=True, id_key=tmp_path / "id.key", **EVERY)
    assert set(scanned.column("group")) == set(written.groups.values())
