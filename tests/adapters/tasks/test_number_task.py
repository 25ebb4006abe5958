"""A task that is added in one file is trained, evaluated and used for prediction by the command line."""

import csv
import json
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from dinomed.adapters.adapter import ADAPTERS
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.task import TASKS, find_task, task_names
from dinomed.apps import cli
from dinomed.datasets.manifest import read_manifest
from dinomed.errors import UsageError
from dinomed.images.read import read_image

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def number_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task of number_task.py, registered during one test."""
    for registry in (TASKS, ADAPTERS):
        monkeypatch.setattr(registry, "_items", dict(registry._items))
    spec = spec_from_file_location("number_task", Path(__file__).with_name("number_task.py"))
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(module_from_spec(spec))


def test_a_fourth_task_works_from_the_command_line(
    number_task: None, lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path, run: Run
) -> None:
    assert task_names()[-1] == "number"
    folder, data = tmp_path / "age", ("--data", lesion_manifest)
    options = ("--backbone", tiny_backbone, *data, "-o", folder, "--cache", tmp_path / "cache", "--json")
    code, out, err = run("train", "number", *options, "--set", "fit.epochs=3")
    assert code == 0, err
    assert json.loads(out)["validation"]["mae"] > 0
    assert "A regressor on frozen features" in (folder / "card.md").read_text()

    code, out, err = run("evaluate", folder, *data, "-o", tmp_path / "page", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["task"] == "number"
    assert report["intervals"]["mae"]["low"] <= report["metrics"]["mae"] <= report["intervals"]["mae"]["high"]
    assert "A regressor on backbone" in (tmp_path / "page" / "report.html").read_text()
    code, out, err = run("evaluate", folder, *data)
    assert code == 0, err
    code, _, err = run("evaluate", folder, *data, "--unit", "group")
    assert code == 2
    assert "--unit group is for classifiers, and this is a regressor" in err

    code, _, err = run("predict", folder, lesion_manifest, "-o", tmp_path / "predicted", "--json")
    assert code == 0, err
    with open(tmp_path / "predicted" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    manifest = read_manifest(lesion_manifest)
    assert [row["image"] for row in rows] == manifest.column("image")
    path = manifest.path(0)
    predicted = load_adapter(folder).predict([path, read_image(path)])
    assert predicted == pytest.approx([float(rows[0]["age"])] * 2, rel=1e-4)


def test_an_unknown_task_names_the_nearest_one(run: Run) -> None:
    with pytest.raises(UsageError, match="unknown task 'segmnt'; did you mean 'segment'"):
        find_task("segmnt")
    code, _, err = run("train", "clasify")
    assert code == 2
    assert "did you mean 'classify'" in err
