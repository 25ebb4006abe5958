"""A task that is added in one file is trained, evaluated, exported and shown by the command line, and predicts."""

import csv
import json
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dinomed.adapters.adapter import ADAPTERS
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.inference.shared import predict_many
from dinomed.adapters.task import TASKS, find_task, task_names
from dinomed.datasets.manifest import read_manifest
from dinomed.errors import UsageError
from dinomed.html.words import format_value
from dinomed.images.read import read_image

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def number_task() -> Iterator[None]:
    """The task of number_task.py, registered during one test.

    Only its own names are removed again: a built-in head that the test imports first stays registered.
    """
    spec = spec_from_file_location("number_task", Path(__file__).with_name("number_task.py"))
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(module_from_spec(spec))
    yield
    del TASKS._items["number"]
    del ADAPTERS._items["number.linear"]


def train(run: Run, folder: Path, backbone: Path, manifest: Path) -> dict[str, Any]:
    options = ("--backbone", backbone, "--data", manifest, "-o", folder, "--cache", folder.parent / "cache", "--json")
    code, out, err = run("train", "number", *options, "--set", "fit.epochs=3")
    assert code == 0, err
    return json.loads(out)  # type: ignore[no-any-return]


def test_a_fourth_task_works_from_the_command_line(
    number_task: None, lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path, run: Run
) -> None:
    assert task_names()[-1] == "number"
    folder, data = tmp_path / "age", ("--data", lesion_manifest)
    assert train(run, folder, tiny_backbone, lesion_manifest)["validation"]["mae"] > 0
    assert "A regressor on frozen features" in (folder / "card.md").read_text()

    code, out, err = run("evaluate", folder, *data, "-o", tmp_path / "page", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["task"] == "number"
    assert report["intervals"]["mae"]["low"] <= report["metrics"]["mae"] <= report["intervals"]["mae"]["high"]
    page = (tmp_path / "page" / "report.html").read_text()
    assert "A regressor on backbone" in page
    assert "mean absolute error" in page
    assert "Further metrics" in page
    assert "mean difference" in page
    assert format_value(report["metrics"]["bias"]) in page
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


@pytest.mark.parametrize("kind", ["safetensors", pytest.param("onnx", marks=pytest.mark.long)])
def test_a_fourth_task_is_exported(
    kind: str, number_task: None, lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path, run: Run
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    folder, out = tmp_path / "age", tmp_path / "exported"
    train(run, folder, tiny_backbone, lesion_manifest)
    code, text, err = run("export", folder, "--format", kind, "-o", out, "--json")
    assert code == 0, err
    report = json.loads(text)
    assert report["source"]["outputs"] == ["number"]
    assert "A number adapter (linear)" in (out / "README.md").read_text()
    predictor = load_adapter(folder)
    path = read_manifest(lesion_manifest).path(0)
    (expected,) = predictor.predict([path])
    if kind == "safetensors":
        assert load_adapter(out).predict([path]) == pytest.approx([expected], rel=1e-5)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(out / "model.onnx"))
        pixels = predictor.preprocessing(read_image(path))[None].numpy()
        assert session.run(None, {"pixels": pixels})[0][0, 0] == pytest.approx(expected, rel=1e-4)
    code, _, err = run("export", folder, "--format", "monai", "-o", tmp_path / "monai")
    assert code == 2
    assert "a regressor cannot be exported as a MONAI bundle" in err


def test_a_fourth_task_has_a_tab_in_the_demo(
    number_task: None, lesion_manifest: Path, tiny_backbone: Path, tmp_path: Path, run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip("gradio")
    from dinomed.apps.demos import launch
    from dinomed.apps.demos.parts import Picture
    from dinomed.apps.demos.values import ValuesPanel

    folder = tmp_path / "age"
    train(run, folder, tiny_backbone, lesion_manifest)
    shown: list[Any] = []
    monkeypatch.setattr(launch, "serve", lambda build, address, browser: shown.append(json.dumps(build().config)))
    code, _, err = run("demo", "all", "--adapter", folder, "--no-browser")
    assert code == 0, err
    assert "Regressor" in shown[0]
    assert "adapter age on backbone" in shown[0].lower()
    code, _, err = run("demo", "all", "--adapter", folder, "--adapter", folder)
    assert code == 2
    assert "are both number adapters; give one of each task" in err
    code, _, err = run("demo", "all", "--segment", folder)
    assert code == 2
    assert "is a number adapter; this needs one made by `dinomed train segment`" in err

    predictor = load_adapter(folder)
    image = read_image(read_manifest(lesion_manifest).path(0))
    ((output,),) = predict_many([predictor], [image])
    assert find_task("number").output_rows(predictor, output) == [("age", pytest.approx(predictor.predict([image])[0]))]
    answer = ValuesPanel(predictor).answer(Picture(image, image, ""), [output], {})["html"]
    assert f"<dt>age</dt><dd>{output:.4g}</dd>" in answer


def test_the_values_of_an_output_have_names() -> None:
    task, three = find_task("depth"), SimpleNamespace(classes=("a", "b", "c"))
    assert task.output_rows(three, {"a": 0.25}) == [("a", 0.25)]
    assert task.output_rows(three, np.array([[1.0], [2.0], [4.0]])) == [("a", 1.0), ("b", 2.0), ("c", 4.0)]
    assert task.output_rows(three, np.array([[1.0, 2.0], [3.0, 6.0]])) == [
        ("lowest", 1.0), ("mean", 3.0), ("highest", 6.0),
    ]  # fmt: skip


def test_an_unknown_task_names_the_nearest_one(run: Run) -> None:
    with pytest.raises(UsageError, match="unknown task 'segmnt'; did you mean 'segment'"):
        find_task("segmnt")
    code, _, err = run("train", "clasify")
    assert code == 2
    assert "did you mean 'classify'" in err
