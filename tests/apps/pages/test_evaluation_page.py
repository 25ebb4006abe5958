"""The page of an evaluation: everything inside it, nothing that names an image unless asked, nothing that runs."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dinomed.adapters.evaluated import EvaluatedValues
from dinomed.adapters.evaluation.report import (
    extreme_cases,
    summarize,
    summarize_subgroups,
)
from dinomed.adapters.evaluation.subgroups import split_subgroups
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.task import find_task
from dinomed.adapters.tasks.classify.answer import Answer
from dinomed.adapters.tasks.classify.evaluated import EvaluatedClasses
from dinomed.apps import cli
from dinomed.apps.pages.plots import bands, matrix, square, thin
from dinomed.datasets.manifest import Manifest, read_manifest, write_manifest
from dinomed.errors import UsageError
from dinomed.images.intensity import IntensityConfig
from dinomed.metrics.bootstrap import bootstrap_mean

pytestmark = pytest.mark.slow  # it trains a classifier and a segmenter


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, lesion_manifest: Path, tiny_backbone: Path) -> Path:
    """A manifest with columns for subgroups, a classifier and a segmenter."""
    folder = tmp_path_factory.mktemp("evaluated")
    manifest = read_manifest(lesion_manifest)
    rng = np.random.default_rng(0)
    sex = rng.choice(["f", "<b>m</b>"], len(manifest)).tolist()
    age = [None if i % 9 == 0 else str(int(value)) for i, value in enumerate(rng.integers(20, 90, len(manifest)))]
    table = manifest.table.drop_columns([name for name in ("sex", "age") if manifest.has(name)])
    table = table.append_column("sex", pa.array(sex)).append_column("age", pa.array(age))
    write_manifest(Manifest(table, manifest.root), folder / "m.parquet")
    for task in ("classify", "segment"):
        with pytest.raises(SystemExit) as end:
            cli.main([
                "train", task, "-b", str(tiny_backbone), "--data", str(folder / "m.parquet"), "-o", str(folder / task),
                "--set", "fit.epochs=2", "--set", "fit.min_steps=0", "--set", "image_size=32", "--quiet",
            ])  # fmt: skip
        assert end.value.code in (0, None)
    return folder


def evaluate(user: Path, task: str, *extra: str) -> tuple[int, dict, str]:
    out = user / f"report-{task}"
    with pytest.raises(SystemExit) as end:
        cli.main([
            "evaluate", str(user / task), "--data", str(user / "m.parquet"), "--by", "sex,age", "--resamples", "50",
            "-o", str(out), "--overwrite", "--quiet", "--json", *extra,
        ])  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text()) if (out / "metrics.json").exists() else {}
    return int(end.value.code or 0), metrics, (out / "report.html").read_text() if metrics else ""


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_the_page_holds_everything_and_names_nobody(user: Path, task: str) -> None:
    code, metrics, page = evaluate(user, task)
    assert code == 0
    assert "For research use only" in page
    assert not re.search(r"<script|https?://(?!www\.w3\.org)|onerror|src=\"(?!data:)", page)
    manifest = read_manifest(user / "m.parquet")
    for text in (page, json.dumps(metrics)):
        assert str(user) not in text
        for column in ("image", "group", "sha256"):
            assert not any(value in text for value in manifest.column(column))
    assert "<b>m</b>" not in page
    assert "&lt;b&gt;m&lt;/b&gt;" in page
    assert page.count("data:image/jpeg") >= 6
    assert {row["value"] for row in metrics["subgroups"]["sex"]} == {"f", "<b>m</b>"}
    assert metrics["subgroups"]["age"][-1]["value"] == "not known"
    assert all(row["few"] for row in metrics["subgroups"]["sex"])
    first = next(iter(metrics["intervals"].values()))
    assert first["low"] <= first["value"] <= first["high"]
    if task == "classify":
        assert page.count("<svg") == 6  # two curves of the training are among them
        assert np.sum(metrics["metrics"]["confusion"]) == metrics["metrics"]["n"]
    else:
        assert metrics["metrics"]["lesions"]["lesions"] > 0
        # first (2) and second training (1); abstention; Dice as a histogram, by lesion size and by threshold
        assert page.count("<svg") == 7
    curve = next(iter(metrics["abstention"]["curves"].values()))
    assert curve["aurc_low"] <= curve["aurc"] <= curve["aurc_high"]
    assert curve["aurc_best"] <= curve["aurc"]
    assert len(metrics["abstention"]["thresholds"]) > 0
    _, _, named = evaluate(user, task, "--names")
    assert any(image in named for image in manifest.column("image"))


@pytest.mark.parametrize("intensity", [{}, {"percentiles": (5, 60)}, {"window": (60, 160)}, {"bits": 16}])
def test_the_picture_of_a_case_has_the_mask_that_was_measured(user: Path, intensity: dict[str, Any]) -> None:
    manifest, task = read_manifest(user / "m.parquet").take(range(8)), find_task("segment")
    predictor = load_adapter(user / "segment")
    plain = [predictor.decide(maps)[0] for maps in predictor.manifest_maps(manifest)]
    backbone, reading = predictor.backbone, {"intensity": IntensityConfig.model_validate(intensity)}
    backbone.preprocessing = backbone.preprocessing.model_copy(update=reading)
    measured = [predictor.decide(maps)[0] for maps in predictor.manifest_maps(manifest)]
    assert all(map(np.array_equal, plain, measured)) == (not intensity)
    for row, mask in enumerate(measured):
        shown = task.masks_of_case(predictor, manifest, row)
        assert shown is not None
        assert np.array_equal(shown[0], mask)


def test_an_unknown_column_or_unit_is_refused_before_the_evaluation(
    user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", str(user / "classify"), "--data", str(user / "m.parquet"), "--by", "sx"])
    assert end.value.code == 2
    assert "no column 'sx'; did you mean 'sex'?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", str(user / "classify"), "--data", str(user / "m.parquet"), "--unit", "patient"])
    assert end.value.code == 2


def test_subgroups_are_the_metrics_of_their_rows(user: Path) -> None:
    manifest = read_manifest(user / "m.parquet")
    values = np.random.default_rng(0).random(len(manifest))
    groups: list[object] = list(range(len(manifest)))
    judged = EvaluatedValues(manifest, groups, {"dice": values}, lambda rows: {"n": len(rows)})
    sex = np.array(manifest.column("sex"))
    for row in summarize_subgroups(judged, ["sex"], 100)["sex"]:
        stratum = values[sex == row["value"]]
        expected = bootstrap_mean(stratum, list(range(len(stratum))), resamples=100)[0]
        interval = row["intervals"]["dice"]
        assert (interval["value"], interval["low"], interval["high"]) == pytest.approx(
            (stratum.mean(), expected.low, expected.high)
        )
    parts = split_subgroups(manifest, "age")
    assert sorted(i for part in parts for i in part.rows) == list(range(len(manifest)))
    assert len(parts) == 5  # quarters, and those not known
    ages = [float(value) if value else np.nan for value in manifest.column("age")]
    highest = [max(ages[i] for i in part.rows) for part in parts[:4]]
    assert highest == sorted(highest)
    with pytest.raises(UsageError, match="different values"):
        split_subgroups(manifest, "image")


def test_one_class_only_and_labels_that_training_has_not_make_a_report(user: Path) -> None:
    manifest = read_manifest(user / "m.parquet").take(range(6))
    probabilities = np.random.default_rng(0).dirichlet(np.ones(2), 6)
    groups: list[object] = list(range(6))
    evaluated = EvaluatedClasses(
        manifest, groups, np.zeros(6, int), probabilities, ["a", "b"], Answer(thresholds=(0.5, 0.5))
    )
    summary = summarize(evaluated, ["sex"], 20)
    assert np.isnan(summary["intervals"]["auroc"]["value"])
    assert np.isnan(summary["operating"]["b"]["sensitivity"])
    labels = np.array([0, 1, 2, 0, 1, 2])
    unseen = EvaluatedClasses(manifest, groups, labels, probabilities, ["a", "b", "new"], Answer(thresholds=(0.5, 0.5)))
    summary = summarize(unseen, (), 20)
    assert summary["metrics"]["per_class"]["new"]["recall"] == 0
    assert set(summary["operating"]) == {"a", "b"}
    best, worst = extreme_cases(unseen, 2)
    assert set(worst) == {2, 5}  # what it could not know
    assert not set(best) & set(worst)


def test_plots_escape_thin_and_survive_nothing() -> None:
    steps = [(x / 5000, float(x > 2500)) for x in range(5001)]
    few = thin(steps)
    assert len(few) < 200
    assert (few[0], few[-1]) == (steps[0], steps[-1])
    assert any(abs(x - 0.5) < 0.01 for x, _ in few)  # the step is not cut off
    assert "<b>" not in square({"<b>": [(0, 0), (1, 1)]}, "<b>", ("x", "y"))
    assert "<b>" not in matrix(["<b>"], [[3]])
    assert square({}, "none", ("x", "y")).count("polyline") == 0
    assert bands({"a": [(np.nan, np.nan, np.nan)]}, ["1"], "c", ("x", "y")) == ""
