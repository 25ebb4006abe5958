"""Keyed hashes in place of groups."""

import csv
import hashlib
import hmac
import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dinomed
from dinomed.apps.api.inputs import prediction_key
from dinomed.datasets.manifest import read_manifest
from dinomed.datasets.scan.videos import name_groups
from dinomed.datasets.synthetic.endoscopy import write_endoscopy
from dinomed.datasets.synthetic.lesions import write_lesions
from dinomed.errors import UsageError
from dinomed.io.pseudonyms import content_identifier, key_check, pseudonym, read_id_key

Run = Callable[..., tuple[int, str, str]]
KEY = b"a secret of the hospital, not a guess"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "id.key"
    path.write_bytes(KEY + b"\n")
    return path


def test_the_same_key_gives_the_same_pseudonym_in_every_scan(key: Path, tmp_path: Path, run: Run) -> None:
    lesions, part = tmp_path / "lesions", tmp_path / "part"
    write_lesions(lesions, count=8, seed=1, broken=0)
    write_lesions(part, count=8, seed=1, broken=0)
    with open(lesions / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    (part / "images" / Path(rows[0]["image"]).name).unlink()  # another table: numbers would differ
    with open(part / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows[1:])
    groups: dict[str, dict[str, str]] = {}
    output = b""
    for name, options in (("lesions", ["--id-key", key]), ("part", ["--id-key", key]), ("plain", [])):
        out = tmp_path / f"{name}.parquet"
        folder = lesions if name == "plain" else tmp_path / name
        code, text, err = run("scan", folder, "--labels", "labels.csv", "--group", "lesion_id", "-o", out, *options)
        assert code == 0, err
        manifest = read_manifest(out)
        images = [Path(image).name for image in manifest.column("image")]
        groups[name] = dict(zip(images, manifest.column("group"), strict=True))
        output += text.encode() + err.encode() + out.read_bytes()
    assert KEY not in output
    for row in rows:
        image = Path(row["image"]).name
        expected = hmac.new(KEY, b"group\0" + row["lesion_id"].encode(), hashlib.sha256).hexdigest()[:32]
        assert groups["lesions"][image] == expected
        assert groups["part"].get(image, expected) == expected
        assert "-" in groups["plain"][image]  # numbers, as before
    assert len(groups["part"]) == len(rows) - 1


def test_a_video_has_one_pseudonym_in_frames_and_scan_whatever_its_name(key: Path, tmp_path: Path) -> None:
    places = [tmp_path / "in" / "a" / "12.avi", tmp_path / "in" / "b" / "12.avi"]
    for made, place in zip(write_endoscopy(tmp_path / "made", videos=2, count=12, size=(72, 96)), places, strict=True):
        place.parent.mkdir(parents=True)
        shutil.copy(made, place)
    every: dict[str, Any] = {"fps": 0, "duplicate_bits": -1, "min_sharpness": 0, "min_tissue": 0, "min_luminance": 0}
    table = tmp_path / "t.csv"
    table.write_text("image,patient\na/12.avi,\nb/12.avi/frame_000001,12\n")
    written = dinomed.frames(places, tmp_path / "out", id_key=key, **every).groups
    alone = dinomed.frames(places[1], tmp_path / "alone", id_key=key, **every).groups
    scanned = dinomed.scan(tmp_path / "in", table, group="patient", split="none", videos=True, id_key=key, **every)
    rows = zip(*(scanned.column(name) for name in ("video", "frame", "group")), strict=True)
    groups = {(str(tmp_path / "in" / video), frame): group for video, frame, group in rows}
    of_patient = groups.pop((str(places[1]), "1"))
    assert {(video, group) for (video, _), group in groups.items()} == set(written.items())
    assert alone == {str(places[1]): written[str(places[1])]}
    assert len({of_patient, *written.values()}) == 3  # a patient 12 is no video 12
    assert name_groups(places, key=KEY) == list(written.values())
    assert name_groups(places, key=KEY[::-1])[0] not in written.values()
    shutil.copy(places[0], tmp_path / "copy.avi")
    with pytest.raises(UsageError, match=r"12.avi and .*copy.avi are the same video; give one"):
        name_groups([places[0], tmp_path / "copy.avi"], key=KEY)


def test_patients_and_volumes_of_slices_are_the_pseudonyms_of_a_scan(key: Path, tmp_path: Path, run: Run) -> None:
    pytest.importorskip("nibabel")
    made = runpy.run_path(str(Path(__file__).parents[2] / "volumes" / "made.py"))
    folder = tmp_path / "in"
    made["write_series"](folder / "series", made["numbers"]((3, 6, 8)), patient="P0012", StudyInstanceUID="1.2.77")
    made["write_nifti"](folder / "mueller.nii.gz", made["numbers"]((6, 8, 3)))
    code, text, err = run("slices", folder, "-o", tmp_path / "out", "--id-key", key, "--json")
    assert code == 0, err
    manifest = read_manifest(tmp_path / "out" / "manifest.csv")
    volumes = {Path(path).name: name for path, name in json.loads(text)["volumes"].items()}
    series = pseudonym("1.2.3", KEY)
    assert set(volumes.values()) == {series, pseudonym(content_identifier(folder / "mueller.nii.gz"), KEY)}
    assert set(manifest.groups()) == {pseudonym("P0012", KEY), volumes["mueller.nii.gz"]}
    assert set(manifest.select(volume=series).column("study")) == {pseudonym("1.2.77", KEY)}
    for file in (tmp_path / "out").rglob("*"):
        if file.is_file():
            for secret in (KEY, b"P0012", b"mueller", b"1.2.77"):
                assert secret not in str(file.relative_to(tmp_path)).encode() + file.read_bytes()
    shutil.copy(folder / "mueller.nii.gz", folder / "copy.nii.gz")
    with pytest.raises(UsageError, match=r"copy.nii.gz and .*mueller.nii.gz are the same volume; give one"):
        dinomed.slices(folder, tmp_path / "again", id_key=key)


def test_a_key_of_a_prediction_names_videos_or_the_patients_of_segmentations(key: Path) -> None:
    options = {"videos": False, "names": False, "dicom_seg": False, "keep_ids": False}
    assert prediction_key(None, **options) is None
    for use in ("videos", "dicom_seg"):
        assert prediction_key(key, **options | {use: True}) == KEY
    for changed, message in (
        ({}, "add `dicom_seg=True`"),
        ({"videos": True, "names": True}, "both name the folders"),
        ({"dicom_seg": True, "keep_ids": True}, "`id_key` replaces groups"),
    ):
        with pytest.raises(UsageError, match=message):
            prediction_key(key, **options | changed)
    assert key_check(KEY) != key_check(KEY[::-1])
    assert KEY.hex() not in str(key_check(KEY))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"short\n", "has 5 bytes"),
        (b"", "has 0 bytes"),
        (b"x" * 5000, "more than 4096 bytes"),
        (None, "cannot read"),
    ],
)
def test_a_key_that_is_none_is_refused_in_one_line(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(UsageError, match=message) as refusal:
        read_id_key(tmp_path / "key")
    assert "\n" not in str(refusal.value)
    assert "short" not in str(refusal.value)  # the key is not repeated


def test_keys_and_groups_as_written_exclude_each_other(key: Path, tmp_path: Path, run: Run) -> None:
    write_lesions(tmp_path / "lesions", count=4, seed=1, broken=0)
    code, _, err = run("scan", tmp_path / "lesions", "-o", tmp_path / "m.csv", "--id-key", key, "--keep-ids")
    assert code == 2
    assert "--id-key" in err
    assert not (tmp_path / "m.csv").exists()
