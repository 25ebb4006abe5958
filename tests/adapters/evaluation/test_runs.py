"""Comparison of adapters on the same data: common images, paired differences, pages, and what cannot be compared."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dinomed.adapters.evaluated import EvaluatedValues
from dinomed.adapters.evaluation import runs
from dinomed.adapters.evaluation.evaluate import Evaluation
from dinomed.adapters.evaluation.runs import compare_runs
from dinomed.adapters.tasks.classify.answer import Answer
from dinomed.adapters.tasks.classify.evaluated import EvaluatedClasses
from dinomed.apps.pages.sections.runs import build_runs_page, describe_runs
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.metrics.bootstrap import bootstrap_mean


def evaluation(manifest: Manifest, rows: list[int], dice: np.ndarray, **changes: Any) -> Evaluation:
    """An evaluation with a Dice and an error for each image."""
    part = manifest.take(rows)
    columns = {"dice": dice, "hd95_px": 10 * (1 - dice)}
    evaluated = EvaluatedValues(part, part.units(), columns, lambda rows: {}, errors=("hd95_px",))
    result = {
        "task": "segment", "split": "test", "unit": "image", "image_size": 32, "aspect": "pad",
        "backbone": {"name": "vit"},
        "seen_in_training": {"images": 0, "of_seen_groups": 0, "left_out": False}, **changes,
    }  # fmt: skip
    return Evaluation(result, evaluated, SimpleNamespace(classes=changes.get("classes", ["lesion"])))  # type: ignore[arg-type]


def test_differences_are_those_of_pairs_on_common_images(manifest: Manifest) -> None:
    rng = np.random.default_rng(0)
    dice = rng.uniform(0.3, 0.9, 40)
    first = evaluation(manifest, list(range(40)), dice)
    better = evaluation(manifest, list(range(49, 4, -1)), np.r_[np.zeros(10), dice[39:4:-1] + 0.02])  # another order
    report = compare_runs([first, better], ["a", "b"], resamples=200)
    assert report["n"] == 35
    assert [run["left_out"] for run in report["runs"]] == [5, 10]
    assert report["runs"][0]["difference"] is None
    for name, expected in (("dice", 0.02), ("hd95_px", -0.2)):
        row = report["runs"][1]["difference"][name]
        assert [row["value"], row["low"], row["high"]] == pytest.approx([expected] * 3, abs=1e-9)
    alone = report["runs"][0]["metrics"]["dice"]
    units = manifest.units()
    interval = bootstrap_mean(dice[5:40], [units[i] for i in range(5, 40)], resamples=200)[0]
    # the sums are those of the same numbers, rounded in another order
    assert [alone["low"], alone["high"]] == pytest.approx([interval.low, interval.high], abs=1e-12)
    assert describe_runs(report).endswith("independent groups: b (+0.020, 0.020 to 0.020) better than a.")
    page = build_runs_page(report)
    assert "interval without 0" in page
    assert "<td>pad</td>" in page
    assert "HD95, px (smaller is better)" in page


def test_what_cannot_be_compared_is_refused(manifest: Manifest) -> None:
    rows, dice = list(range(10)), np.linspace(0, 1, 10)
    first = evaluation(manifest, rows, dice)
    for other, reason in (
        (evaluation(manifest, rows, dice, task="depth"), "task segment and depth"),
        (evaluation(manifest, rows, dice, unit="group"), "unit image and group"),
        (evaluation(manifest, rows, dice, classes=["polyp"]), "different classes: lesion and polyp"),
        (evaluation(manifest, list(range(20, 30)), dice), "no image is left"),
    ):
        with pytest.raises(UsageError, match=reason):
            compare_runs([first, other], ["a", "b"], resamples=20)


def test_other_tasks_or_classes_are_refused_before_anything_is_predicted(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = {"a": ("classify", ("x", "y")), "b": ("segment", ("lesion",)), "c": ("classify", ("x", "z"))}

    def read(folder: str) -> SimpleNamespace:
        return SimpleNamespace(task=records[folder][0], classes=records[folder][1])

    monkeypatch.setattr(runs, "read_adapter_record", read)
    monkeypatch.setattr(runs, "predict_split", None)  # a call of it would be a TypeError
    for other, reason in (
        ("b", "a and b cannot be compared: task classify and segment"),
        ("c", "different classes: x, y and x, z"),
    ):
        with pytest.raises(UsageError, match=reason):
            runs.evaluate_runs(["a", other], manifest, "test")


def classified(manifest: Manifest, targets: np.ndarray, names: list[str], **answer: Any) -> Evaluation:
    """An evaluation of a classifier of the classes a and b with random probabilities."""
    part = manifest.take(list(range(len(targets))))
    probabilities = np.random.default_rng(0).dirichlet((1, 1), len(targets))
    evaluated = EvaluatedClasses(part, part.units(), targets, probabilities, names, Answer(**answer))
    base = evaluation(manifest, list(range(len(targets))), np.ones(len(targets)), task="classify", classes=["a", "b"])
    return replace(base, evaluated=evaluated)


def test_adapters_of_equal_classes_on_other_labels_are_refused_and_unknown_classes_do_not_matter(
    manifest: Manifest,
) -> None:
    targets = np.resize([0, 1, 1, 2], 12)
    first = classified(manifest, targets, ["a", "b", "c"])
    compare_runs([first, classified(manifest, targets + (targets == 2), ["a", "b", "d", "c"])], ["x", "y"], resamples=5)
    several = np.stack([targets == 0, targets == 1], axis=1).astype(float)
    for other in (
        classified(manifest, 1 - np.minimum(targets, 1), ["a", "b"]),
        classified(manifest, several, ["a", "b"], multilabel=True),
    ):
        with pytest.raises(UsageError, match="x and y were trained on different labels"):
            compare_runs([first, other], ["x", "y"], resamples=5)


def test_groups_are_matched_by_their_names_whatever_frame_stands_for_them(manifest: Manifest) -> None:
    names = pa.array([None if i >= 20 else f"video {i // 10}" for i in range(len(manifest))])
    place = manifest.table.column_names.index("group")
    videos = replace(manifest, table=manifest.table.set_column(place, "group", names))
    dice = np.array([0.2, 0.4, 0.6])  # of two videos, and of an image without a group
    first = evaluation(videos, [1, 11, 20], dice, unit="group")
    second = evaluation(videos, [12, 2, 20], dice[[1, 0, 2]], unit="group")
    report = compare_runs([first, second], ["a", "b"], resamples=5)
    assert report["n"] == report["groups"] == 3
    assert [run["left_out"] for run in report["runs"]] == [0, 0]
    assert report["runs"][1]["difference"]["dice"]["value"] == 0
    with pytest.raises(UsageError, match="no group is left for all adapters"):
        compare_runs([first, evaluation(videos, [25], dice[:1], unit="group")], ["a", "b"], resamples=5)


def test_an_adapter_that_was_trained_on_the_images_is_named(manifest: Manifest) -> None:
    rows, dice = list(range(10)), np.linspace(0, 1, 10)
    seen = {"images": 4, "of_seen_groups": 0, "left_out": False}
    runs = [evaluation(manifest, rows, dice), evaluation(manifest, rows, dice, seen_in_training=seen)]
    report = compare_runs(runs, ["a", "b"], resamples=5)
    assert "METRICS TOO HIGH: the fit of b used" in describe_runs(report)
    assert "METRICS TOO HIGH: the fit of b used" in build_runs_page(report)


def test_the_command_compares_adapters(user_folder: Path, run, tmp_path: Path) -> None:
    shutil.copytree(user_folder, tmp_path / "user")
    for name in ("one", "two"):
        shutil.copytree(user_folder / "cls", tmp_path / "user" / name)
    data = ("--data", tmp_path / "user" / "derm.parquet", "--resamples", "50", "--quiet")
    adapters = (tmp_path / "user" / "one", tmp_path / "user" / "two")
    code, out, err = run("evaluate", *adapters, *data, "-o", tmp_path / "out", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert [each["name"] for each in report["runs"]] == ["one", "two"]
    for row in report["runs"][1]["difference"].values():
        assert row["value"] == row["low"] == row["high"] == 0
    assert str(tmp_path) not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "report" not in json.loads((tmp_path / "out" / "metrics.json").read_text())
    code, out, _ = run("evaluate", *adapters, *data)
    assert code == 0
    assert "not distinguished from one" in " ".join(out.split())
    code, _, err = run("evaluate", *adapters, *data, "--by", "sex")
    assert code == 2
    assert "--by is for one adapter" in err
