"""`dinomed scan` as a user meets it: output, exit codes, nothing lost."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dinomed
from dinomed.datasets.manifest import read_manifest
from dinomed.datasets.synthetic.lesions import write_lesions
from dinomed.notice import RESEARCH_USE


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lesions(tmp_path_factory.mktemp("lesions") / "skin", count=30)


Run = Callable[..., tuple[int, str, str]]


def test_table_manifest_and_list_of_unreadable_files(lesions: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "runs" / "skin.parquet"
    code, text, messages = run("scan", lesions, "--labels", "labels.csv", "--group", "lesion_id", "-o", out)
    assert code == 0, messages
    assert "class irregular" in text
    assert str(tmp_path / "runs" / "skin.unreadable.csv") in messages
    assert len(read_manifest(out)) == 30
    with open(tmp_path / "runs" / "skin.unreadable.csv", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [f"images/broken_{i}.jpg" for i in range(3)]
    assert sorted(path.name for path in out.parent.iterdir()) == ["skin.parquet", "skin.unreadable.csv"]


def test_json_is_the_only_thing_on_stdout(lesions: Path, tmp_path: Path) -> None:
    """In a process of its own, so that lines of libraries and of decoding processes count too."""
    command = [sys.executable, "-m", "dinomed", "scan", str(lesions), "--labels", "labels.csv"]
    command += ["-o", str(tmp_path / "m.csv"), "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    report, messages = json.loads(done.stdout), done.stderr
    assert (report["images"], report["unreadable"], report["masks"]["masks"]) == (30, 3, 30)
    assert sum(report["classes"].values()) == sum(part["images"] for part in report["splits"].values()) == 30
    assert RESEARCH_USE in report["notes"]
    assert all(line.startswith("warning: ") for line in messages.splitlines())


def test_same_bytes_under_any_locale_and_time_zone(lesions: Path, tmp_path: Path) -> None:
    places = [
        {"LC_ALL": "C", "TZ": "UTC"},
        {"LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Tokyo", "PYTHONUTF8": "0", "HOME": ""},
    ]
    command = [sys.executable, "-m", "dinomed", "scan", str(lesions), "--labels", "labels.csv"]
    for name, place in zip("ab", places, strict=True):
        out = str(tmp_path / name / "m.csv")
        subprocess.run([*command, "-o", out], env=os.environ | place, check=True, capture_output=True, timeout=300)
    for file in ("m.csv", "m.unreadable.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_only_manifests_are_overwritten(lesions: Path, tmp_path: Path, run: Run) -> None:
    precious = tmp_path / "labels.csv"
    precious.write_text("image,label\na,b\n")
    code, _, messages = run("scan", lesions, "-o", precious, "--overwrite")
    assert (code, precious.read_text()) == (2, "image,label\na,b\n")
    assert "is not overwritten" in messages
    out = tmp_path / "m.parquet"
    assert run("scan", lesions, "-o", out)[0] == 0
    before = out.read_bytes()
    assert run("scan", lesions, "-o", out)[0] == 2
    assert out.read_bytes() == before
    assert run("scan", lesions, "-o", out, "--labels", "labels.csv", "--overwrite")[0] == 0
    assert out.read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{tmp}/none", "-o", "{tmp}/m.parquet"], 2, "none does not exist"),
        (["{tmp}", "-o", "{tmp}/m.parquet"], 2, "holds no image"),
        (["{data}", "-o", "{tmp}/m.txt"], 2, "a manifest is a .parquet or .csv file"),
        (["{data}", "-o", "{data}"], 2, "is a .parquet or .csv file"),
        (["{data}", "-o", "/proc/none/m.parquet"], 1, "/proc/none is not writable"),
        (["{data}", "-o", "{tmp}/m.parquet", "--ratios", "a,b"], 2, "--ratios a,b: expected three numbers"),
        (["{data}", "-o", "{tmp}/m.parquet", "--ratios", "0,1,1"], 2, "ratios"),
        (
            ["{data}", "-o", "{tmp}/m.parquet", "--labels", "labels.csv", "--group", "lesionid"],
            2,
            "did you mean 'lesion_id'",
        ),
    ],
)
def test_bad_requests_get_one_line(
    lesions: Path, tmp_path: Path, arguments: list[str], code: int, said: str, run: Run
) -> None:
    returned, text, messages = run("scan", *(argument.format(tmp=tmp_path, data=lesions) for argument in arguments))
    assert returned == code
    assert said in messages
    assert len(messages.splitlines()) <= 2
    assert text == ""
    assert not list(tmp_path.glob("m.*"))


def test_a_bad_request_gets_one_line_from_its_process(lesions: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dinomed", "scan", str(lesions), "-o", str(tmp_path / "m.txt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr


def test_a_folder_that_is_mostly_unreadable_gives_no_manifest(tmp_path: Path, run: Run) -> None:
    mostly = write_lesions(tmp_path / "mostly", count=3, size=(40, 40), broken=4)
    out = tmp_path / "m.parquet"
    code, _, messages = run("scan", mostly, "-o", out)
    assert code == 1
    assert "error: 4 of 7 files of" in messages
    assert "--allow-unreadable" in messages
    assert not list(tmp_path.glob("m.*"))
    code, _, messages = run("scan", mostly, "-o", out, "--allow-unreadable")
    assert (code, len(read_manifest(out))) == (0, 3)
    assert "MORE THAN HALF" in messages


def test_names_and_numbers_of_patients_are_not_written_by_default(tmp_path: Path, run: Run) -> None:
    clean = write_lesions(tmp_path / "clean", count=6, size=(40, 40), broken=0)
    lines = (clean / "labels.csv").read_text().splitlines()
    lines = [f"{line},{'PatientName,MRN' if i == 0 else f'Planted{i},Planted{i % 2}'}" for i, line in enumerate(lines)]
    (clean / "labels.csv").write_text("\n".join(lines))
    wanted = ["scan", clean, "--labels", "labels.csv", "--group", "MRN", "--split", "none"]
    code, text, messages = run(*wanted, "-o", tmp_path / "out" / "m.csv")
    assert code == 0, messages
    assert "Planted" not in text + messages
    assert not any(b"Planted" in path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert "PatientName; keep one with --keep COLUMN" in messages
    kept = ("--keep-ids", "--keep", "PatientName")
    assert run(*wanted, "-o", tmp_path / "kept.csv", *kept)[0] == 0
    assert "Planted3" in (tmp_path / "kept.csv").read_text()


def test_the_stale_list_of_an_earlier_scan_goes(lesions: Path, tmp_path: Path, run: Run) -> None:
    clean = write_lesions(tmp_path / "clean", count=3, size=(40, 40), broken=0)
    out = tmp_path / "m.parquet"
    assert run("scan", lesions, "-o", out)[0] == 0
    assert (tmp_path / "m.unreadable.csv").exists()
    assert run("scan", clean, "-o", out, "--overwrite")[0] == 0
    assert not (tmp_path / "m.unreadable.csv").exists()


def test_a_remedy_in_the_list_of_unreadable_files_is_in_the_notation_of_its_caller(tmp_path: Path, run: Run) -> None:
    folder = write_lesions(tmp_path / "skin", count=3, size=(40, 40), broken=0)
    levels = np.zeros((40, 40), np.uint8)
    levels[4:12], levels[12:20] = 120, 255
    with open(folder / "labels.csv", newline="") as file:
        mask = folder / next(csv.DictReader(file))["mask"]
    Image.fromarray(levels).save(mask)
    assert run("scan", folder, "--labels", "labels.csv", "-o", tmp_path / "m.csv")[0] == 0
    assert "scan with --label-maps and train with --set kind=multiclass" in (tmp_path / "m.unreadable.csv").read_text()
    dinomed.scan(folder, "labels.csv", out=tmp_path / "n.csv")
    assert "scan with `label_maps=True` and train with `settings=" in (tmp_path / "n.unreadable.csv").read_text()
