"""Identifiers that are planted in a table of labels are in no output of any command."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from dinomed.adapters.retrieval.index import read_index

Run = Callable[..., tuple[int, str, str]]

IDENTIFYING = (
    "pid", "subject_id", "case_id", "participant_id", "record_id", "pat_nr", "study_uid", "Nachname", "Geburtsdatum",
    "PatientName", "remark",
)  # fmt: skip
GROUPS = ("patient", "pid2", "Fallnummer")


def plant(folder: Path) -> Path:
    """Add identifying columns to labels.csv: each cell holds PLANTED, the name of its column and its row."""
    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row |= {name: f"PLANTED-{name}-{number}" for name in IDENTIFYING}
        row |= {name: f"PLANTED-{name}-{row['lesion_id']}" for name in GROUPS}
    with open(folder / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "labels.csv"


def places_with_plants(root: Path) -> list[str]:
    """Return the files below `root` that hold a planted value, also inside compressed tables and indexes."""
    paths = []
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += str(pq.ParquetFile(path).read().to_pydict()).encode()
        if path.name == "index.safetensors":
            content += str(read_index(path.parent).manifest.table.to_pydict()).encode()
        if b"PLANTED" in content or "PLANTED" in path.name:
            paths.append(str(path.relative_to(root)))
    return paths


def test_no_planted_identifier_is_in_any_output(user_folder: Path, tmp_path: Path, run: Run) -> None:
    lesions, out = tmp_path / "lesions", tmp_path / "out"
    shutil.copytree(user_folder / "lesions", lesions)
    labels = plant(lesions)
    text = ""
    for group in GROUPS:
        for name in (f"{group}.parquet", f"{group}.csv"):
            arguments = ("--labels", labels, "--group", group, "--keep", "sex", "-o", out / name)
            code, stdout, stderr = run("scan", lesions, *arguments)
            assert code == 0, stderr
            text += stdout + stderr
    data = out / "patient.parquet"
    for arguments in (
        ("index", data, "-b", user_folder / "ssl", "-o", out / "idx"),
        ("search", data, "--index", out / "idx", "--json", "-o", out / "hits"),
        ("predict", user_folder / "cls", data, "-o", out / "images"),
        ("predict", user_folder / "cls", data, "--unit", "group", "-o", out / "groups"),
        ("evaluate", user_folder / "cls", "--data", data, "--by", "sex", "--names", "--json", "-o", out / "report"),
        ("features", data, "-b", user_folder / "ssl", "-o", out / "features.parquet"),
    ):
        code, stdout, stderr = run(*arguments)
        assert code == 0, stderr
        text += stdout + stderr
    assert "PLANTED" not in text
    assert places_with_plants(out) == []
    assert len(list(out.rglob("*"))) > 15  # the commands have written something
    for name in (*IDENTIFYING, "lesion_id"):
        assert name in text  # scan says which columns it leaves out
    assert places_with_plants(lesions) == ["labels.csv"]  # the search finds what is there
