"""`dinomed predict --abstain` and `--max-risk`, and prediction sets in its table."""

import csv
import json
from pathlib import Path

import pytest

from dinomed.adapters.bundle import read_record
from dinomed.datasets.manifest import read_manifest, write_manifest


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def val(user_folder: Path, tmp_path: Path) -> Path:
    """The images on which the thresholds were chosen."""
    write_manifest(read_manifest(user_folder / "derm.parquet").select(split="val"), tmp_path / "val.parquet")
    return tmp_path / "val.parquet"


@pytest.mark.parametrize("task", ["cls", "seg"])
def test_predictions_of_low_confidence_are_marked_and_counted(
    user_folder: Path, run, tmp_path: Path, val: Path, task: str
) -> None:
    code, out, err = run("predict", user_folder / task, val, "-o", tmp_path / "a", "--abstain", 0.3, "--json")
    assert code == 0, err
    report, rows = json.loads(out), rows_of(tmp_path / "a")
    abstained = [row["abstained"] == "yes" for row in rows]
    assert report["abstained"] == sum(abstained)
    assert 0 < sum(abstained) < len(rows)
    confidences = (
        [max(float(row[name]) for name in read_record(user_folder / task).classes) for row in rows]
        if task == "cls"
        else [1 - float(row["uncertainty"]) for row in rows]
    )
    lowest_kept = min(value for value, left_out in zip(confidences, abstained, strict=True) if not left_out)
    assert all(value < lowest_kept for value, left_out in zip(confidences, abstained, strict=True) if left_out)
    groups = read_manifest(val).units()
    share = [groups.count(group) for group in groups]
    kept = sum((not left_out) / count for left_out, count in zip(abstained, share, strict=True)) / len(set(groups))
    assert kept >= 0.7
    assert report["abstention"].startswith("An image is abstained if its confidence is below ")
    assert f", which {kept:.0%} of the validation images reach" in report["abstention"]
    risk = 0.95  # that some threshold of every adapter keeps
    code, out, err = run("predict", user_folder / task, val, "-o", tmp_path / "risk", "--max-risk", risk, "--json")
    assert code == 0, err
    assert json.loads(out)["abstained"] == [row["abstained"] for row in rows_of(tmp_path / "risk")].count("yes")
    code, out, err = run("predict", user_folder / task, val, "-o", tmp_path / "b", "--quiet")
    assert code == 0, err
    assert "abstained" not in rows_of(tmp_path / "b")[0]
    assert "abstained" not in out


def test_sets_hold_the_predicted_class_and_are_in_the_table_and_the_report(
    user_folder: Path, run, tmp_path: Path, val: Path
) -> None:
    assert run("predict", user_folder / "cls", val, "-o", tmp_path / "a", "--quiet", "--no-sheet")[0] == 0
    rows, classes = rows_of(tmp_path / "a"), read_record(user_folder / "cls").classes
    limit = read_record(user_folder / "cls").usage["sets"]["limit"]
    for row in rows:
        names = row["prediction_set"].split("|")
        assert row["predicted"] in names
        assert set(names) - {row["predicted"]} == {
            name for name in classes if float(row[name]) >= limit - 1e-6 and name != row["predicted"]
        }
    code, out, _ = run(
        "evaluate", user_folder / "cls", "--data", user_folder / "derm.parquet", "--json", "--resamples", 20
    )
    assert code == 0
    sets = json.loads(out)["prediction_sets"]
    assert 0 <= sets["coverage_low"] <= sets["coverage"] <= sets["coverage_high"] <= 1
    assert 1 <= sets["mean_size"] <= len(classes)
    assert "prediction sets" in (user_folder / "cls" / "card.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--abstain", 1.5), ": give a share from 0 to below 1"),
        (("--max-risk", 0.2, "--abstain", 0.1), "exclude each other"),
        (("--abstain", 0.1, "--unit", "group"), "the thresholds were chosen for a prediction by image"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused_and_leaves_nothing(
    user_folder: Path, run, tmp_path: Path, val: Path, options: tuple, message: str
) -> None:
    code, _, err = run("predict", user_folder / "cls", val, "-o", tmp_path / "out", *options)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["cls", "seg"])
def test_the_evaluation_explains_its_table_of_abstention_within_100_columns(
    user_folder: Path, run, tmp_path: Path, task: str
) -> None:
    data = user_folder / "derm.parquet"
    code, out, err = run("evaluate", user_folder / task, "--data", data, "--resamples", 10, "-o", tmp_path / "e")
    assert code == 0, err
    report = json.loads((tmp_path / "e" / "metrics.json").read_text())
    page = (tmp_path / "e" / "report.html").read_text(encoding="utf-8")
    lines = out[out.index("Abstention: ") : out.index("AURC of the best order")].splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 100
    assert len(report["abstention"]["curves"]) == 2
    for column in ("images that are kept", *report["abstention"]["curves"]):
        assert any(line.startswith(f"{column}: ") for line in lines)
        assert f"{column}: " in page
    half = next(line for line in lines if "50%" in line)
    values = [f"{curve['risk']['0.5']:.3f}" for curve in report["abstention"]["curves"].values()]
    assert half.replace("│", " ").split() == ["50%", *values]
    assert "An image below the threshold is abstained" in page
