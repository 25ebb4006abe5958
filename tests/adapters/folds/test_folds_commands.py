"""`dinomed train --folds`, and the commands that take an ensemble like any other adapter."""

import csv
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

import dinomed
from dinomed.adapters.bundle import read_record
from dinomed.adapters.folds.plan import with_splits
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.task import find_task
from dinomed.datasets.manifest import read_manifest

Run = Callable[..., tuple[int, str, str]]


@dataclass(frozen=True)
class Trained:
    """What `dinomed train --folds 2` wrote and printed, and its words."""

    folder: Path
    text: str
    words: list[str]


@pytest.fixture(scope="module")
def trained(lesion_manifest: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """An ensemble of two classifiers and one of two segmenters. Read-only."""
    from dinomed.apps import cli

    ensembles = {}
    for task, settings in (("classify", []), ("segment", ["--set", "augment=none"])):
        out = tmp_path_factory.mktemp("ensembles") / task
        words = ["train", task, "--folds", "2", "--backbone", str(tiny_backbone), "--data", str(lesion_manifest)]
        for setting in ("fit.epochs=1", "fit.min_steps=0", "image_size=32"):
            words += ["--set", setting]
        words += [*settings, "-o", str(out), "--quiet"]
        with redirect_stdout(StringIO()) as stdout:
            cli.invoke(words)
        ensembles[task] = Trained(out, stdout.getvalue(), words)
    return ensembles


@pytest.fixture
def ensembles(trained: dict[str, Trained]) -> dict[str, Path]:
    return {task: result.folder for task, result in trained.items()}


@pytest.mark.parametrize(("task", "metric"), [("classify", "auroc"), ("segment", "dice")])
def test_the_command_trains_folds_and_prints_their_metrics(
    task: str, metric: str, run: Run, trained: dict[str, Trained]
) -> None:
    result = trained[task]
    table = json.loads((result.folder / "cross_validation.json").read_text())
    line = next(line for line in result.text.splitlines() if metric in line.split())
    values = [table["intervals"][metric][name] for name in ("value", "low", "high")]
    values += [row["values"][metric] for row in table["by_fold"]]
    assert [word for word in line.split() if "." in word] == [f"{value:.3f}" for value in values]
    assert [row["fold"] for row in table["by_fold"]] == [1, 2]
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "card.md", "cross_validation.json", "ensemble.json", "fold_1", "fold_2"
    ]  # fmt: skip
    card = (result.folder / "card.md").read_text()
    assert "## Measured out of fold" in card
    left_out = "- No abstention: the thresholds were chosen on the confidence of single members"
    assert (left_out in card) == (task == "segment")
    assert ("| threshold |" in card) == (task == "segment")
    assert "chosen on val |" not in card
    member = (result.folder / "fold_1" / "card.md").read_text()
    assert ("The bundle holds mean features" in card) == ("The bundle holds mean features" in member)
    code, text, _ = run(*result.words, "--json")
    assert code == 2
    assert "already holds a result; add --overwrite to replace it" in json.loads(text)["error"]


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_evaluate_predict_and_doctor_take_an_ensemble(
    task: str, run: Run, ensembles: dict[str, Path], lesion_manifest: Path, tmp_path: Path
) -> None:
    words = ("evaluate", ensembles[task], "--data", lesion_manifest, "--quiet")
    code, text, _ = run(*words, "--json", "-o", tmp_path / "test")
    assert code == 0
    report = json.loads(text)
    table = json.loads((ensembles[task] / "cross_validation.json").read_text())
    assert set(table["metrics"]) == set(report["metrics"])
    assert report["seen_in_training"] == {"images": 0, "of_seen_groups": 0, "left_out": False}
    assert (tmp_path / "test" / "report.html").is_file()
    code, _, error = run(*words, "--split", "val")
    assert code == 0
    assert "overlaps the training and validation data" in error
    out = tmp_path / "predicted"
    code, _, _ = run("predict", ensembles[task], lesion_manifest, "-o", out, "--quiet")
    assert code == 0
    assert len(list(csv.reader((out / "predictions.csv").open()))) == 61
    code, text, _ = run("doctor", ensembles[task], "--json", "--quiet")
    assert code == 0
    assert "fold_2: head" in text


def test_what_an_ensemble_cannot_do_is_said_in_one_line(
    run: Run, ensembles: dict[str, Path], lesion_manifest: Path, tmp_path: Path
) -> None:
    folder = ensembles["classify"]
    code, _, error = run("export", folder, "--format", "timm", "-o", tmp_path / "timm")
    assert code == 2
    assert "--format timm holds only one backbone; give the backbone on which the ensemble was trained" in error
    folder = ensembles["segment"]
    code, _, error = run("predict", folder, lesion_manifest, "-o", tmp_path / "out", "--abstain", 0.1)
    assert code == 2
    assert "thresholds of confidence; an ensemble has none: give one of its members, such as fold_1" in error


def test_metrics_of_joined_parts_are_those_of_all_images(ensembles: dict[str, Path], lesion_manifest: Path) -> None:
    member, task = ensembles["segment"] / "fold_1", find_task("segment")
    predictor, images = load_adapter(member), read_manifest(lesion_manifest).select(split="test")
    parts = [task.evaluate(predictor, images.take(rows), "test") for rows in (range(2), range(2, len(images)))]
    joined = task.combine_use([read_record(member)] * 2, parts).evaluated
    whole = task.evaluate(predictor, images, "test")
    for rows in (range(len(images)), range(1, 4)):
        assert json.dumps(joined.metrics(rows)) == json.dumps(whole.metrics(rows))


def test_maps_of_the_members_are_averaged_image_by_image(
    ensembles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor: Any = load_adapter(ensembles["segment"])
    steps = list[str]()
    for name in ("resized", "finish"):
        step = getattr(predictor, name)
        monkeypatch.setattr(predictor, name, lambda *given, name=name, step=step: steps.append(name) or step(*given))
    maps = predictor.batch_maps(torch.zeros(3, 3, 32, 32), [(8, 9)] * 3)
    assert [each.shape for each in maps] == [(1, 8, 9)] * 3
    assert steps == ["resized", "finish"] * 3


def test_images_and_groups_of_any_member_are_left_out(ensembles: dict[str, Path], lesion_manifest: Path) -> None:
    manifest = read_manifest(lesion_manifest)
    used = [split != "test" for split in manifest.column("split")]
    kept = [row for row, each in enumerate(used) if not each]
    some = [row for row, each in enumerate(used) if each][: len(kept) // 2]
    mixed = with_splits(manifest.take(kept + some), ["test"] * len(kept + some))
    report = dinomed.evaluate(ensembles["classify"], mixed)
    assert report["seen_in_training"]["left_out"]
    assert report["seen_in_training"]["images"] == len(some)
    assert report["metrics"]["n"] == len(kept)
