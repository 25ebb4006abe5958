"""A model that gives nan for an image gives no answer for it: the image is named, the others are kept, exit code 1."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from dinomed.adapters.export.parity import difference
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.inference.shared import predict_many
from dinomed.adapters.predictor import Predictor
from dinomed.adapters.retrieval.search import load_index
from dinomed.apps.demos.classify import ClassifyPanel
from dinomed.apps.demos.page import NO_RESULT, run_consumers
from dinomed.apps.demos.retrieve import RetrievePanel
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.vit import Tokens
from dinomed.datasets.manifest import read_manifest
from dinomed.errors import DinomedError
from dinomed.features.extract import extract
from dinomed.features.finite import NotFiniteError, check_finite

Run = Callable[..., tuple[int, str, str]]
WHITE = "white.png"


@pytest.fixture
def white_gives_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone that gives nan for white images, as overflow in one image does."""
    forward = FrozenBackbone.forward

    def broken(self: FrozenBackbone, images: Tensor, blocks: Any = (-1,)) -> list[Tokens]:
        tokens = forward(self, images, blocks)
        white = images.flatten(1).min(dim=1).values > 2  # white is 2.2 to 2.6 after the normalisation
        for block in tokens:
            block.patches[white, 3] = torch.nan
        return tokens

    monkeypatch.setattr(FrozenBackbone, "forward", broken)


@pytest.fixture
def head_gives_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that give nan for every image, as weights of nan do."""
    load = torch.nn.Module.load_state_dict

    def broken(self: torch.nn.Module, state: Any, *args: Any, **kwargs: Any) -> Any:
        weights = {name: value * torch.nan if value.is_floating_point() else value for name, value in state.items()}
        return load(self, weights, *args, **kwargs)

    monkeypatch.setattr("dinomed.adapters.adapter.Adapter.load_state_dict", broken)


@pytest.fixture
def pictures(user_folder: Path, tmp_path: Path) -> Path:
    """Three images of lesions, and a white one."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted((user_folder / "lesions" / "images").iterdir())[:3]:
        shutil.copy(path, folder)
    Image.new("RGB", (40, 40), "white").save(folder / WHITE)
    return folder


@pytest.mark.parametrize("views", [{}, {"flips": True}, {"window": 24}])
def test_predict_lists_the_image_and_keeps_the_others(
    user_folder: Path, pictures: Path, tmp_path: Path, run: Run, white_gives_nan: None, views: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(
        "dinomed.adapters.tasks.segment.predict.views_of",
        lambda usage: __import__("dinomed.adapters.inference.dense", fromlist=["Views"]).Views(**views),
    )
    code, out, err = run("predict", user_folder / "seg", pictures, "-o", tmp_path / "out", "--json", "--quiet")
    assert code == 1
    assert WHITE in err
    assert "not finite" in err
    assert json.loads(out)["images"] == 3
    assert {path.name for path in (tmp_path / "out").rglob("*.png")} == {
        path.with_suffix(".png").name for path in pictures.iterdir() if path.name != WHITE
    }
    with open(tmp_path / "out" / "unreadable.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["image"] == WHITE


def test_predict_of_a_classifier_writes_no_row_of_nan(
    user_folder: Path, pictures: Path, tmp_path: Path, run: Run, white_gives_nan: None
) -> None:
    code, _, err = run("predict", user_folder / "cls", pictures, "-o", tmp_path / "out", "--quiet")
    assert code == 1, err
    text = (tmp_path / "out" / "predictions.csv").read_text()
    assert "nan" not in text
    assert len(text.splitlines()) == 4


@pytest.mark.parametrize("adapter", ["cls", "seg"])
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_head_of_nan_gives_no_result_at_all(
    user_folder: Path, tmp_path: Path, run: Run, head_gives_nan: None, adapter: str, command: str
) -> None:
    data = user_folder / "derm.parquet"
    arguments = (data, "-o", tmp_path / "out") if command == "predict" else ("--data", data, "-o", tmp_path / "out")
    code, _, err = run(command, user_folder / adapter, *arguments, "--quiet")
    assert code == 1
    assert "not finite" in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.png"))
    assert not list(tmp_path.rglob("metrics.json"))


@pytest.mark.parametrize("adapter", ["cls", "seg"])
def test_evaluate_names_the_image(
    user_folder: Path, tmp_path: Path, run: Run, white_gives_nan: None, adapter: str
) -> None:
    shutil.copytree(user_folder / "lesions", tmp_path / "lesions")
    manifest = read_manifest(user_folder / "derm.parquet")
    row = manifest.column("split").index("test")
    path = tmp_path / "lesions" / manifest.column("image")[row]
    Image.new("RGB", Image.open(path).size, "white").save(path, quality=100)
    scan = ("scan", tmp_path / "lesions", "--labels", "labels.csv", "--group", "lesion_id", "--quiet")
    assert run(*scan, "-o", tmp_path / "m.parquet")[0] == 0
    code, out, err = run("evaluate", user_folder / adapter, "--data", tmp_path / "m.parquet", "--json", "--quiet")
    assert code == 1
    assert path.name in err
    assert list(json.loads(out)) == ["error"]  # no metrics


def test_features_and_index_keep_the_other_images(
    user_folder: Path, pictures: Path, tmp_path: Path, run: Run, white_gives_nan: None
) -> None:
    code, out, err = run(
        "features", pictures, "-b", user_folder / "ssl", "-o", tmp_path / "f.parquet", "--json", "--quiet"
    )
    assert code == 1
    assert json.loads(out)["images"] == 3
    table = pq.ParquetFile(tmp_path / "f.parquet").read()
    assert WHITE not in table["image"].to_pylist()
    assert np.isfinite(table["feature"].combine_chunks().flatten().to_numpy()).all()
    assert WHITE in (tmp_path / "f.unreadable.csv").read_text()
    assert not (tmp_path / "f.parts").exists()
    for pool in ("cls", "gem"):
        index = tmp_path / f"idx_{pool}"
        options = ("-b", user_folder / "ssl", "-o", index, "--pool", pool, "--json", "--quiet")
        code, out, err = run("index", pictures, *options)
        assert code == 1
        assert WHITE in err
        assert json.loads(out)["images"] == 3
        assert WHITE not in load_index(index).vector_index.manifest.column("image")


def test_search_answers_the_other_queries(user_folder: Path, pictures: Path, run: Run, white_gives_nan: None) -> None:
    code, out, err = run("search", pictures, "--index", user_folder / "idx", "--json", "--quiet")
    assert code == 1
    assert WHITE in err
    report = json.loads(out)
    assert len(report["queries"]) == 3
    assert [entry["image"] for entry in report["unreadable"]] == [WHITE]


def test_features_of_a_damaged_backbone_are_one_clear_error(
    user_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_adapter(user_folder / "cls").backbone
    monkeypatch.setattr(
        FrozenBackbone,
        "forward",
        lambda self, images, blocks=(-1,): [
            Tokens(*(torch.full((len(images), *shape), torch.nan) for shape in ((32,), (0, 32), (16, 32))))
        ],
    )
    manifest = read_manifest(user_folder / "derm.parquet")
    with pytest.raises(DinomedError, match="for all images; its weights are damaged"):
        extract(backbone, manifest, cache=tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


def test_the_demo_says_that_there_is_no_result(user_folder: Path, pictures: Path, white_gives_nan: None) -> None:
    predictor, index = load_adapter(user_folder / "cls"), load_index(user_folder / "idx")
    for consumers in ([predictor], [index], [load_adapter(user_folder / "seg")]):
        with pytest.raises(NotFiniteError):
            predict_many(consumers, [np.full((40, 40, 3), 255, np.uint8)])
    panels = [ClassifyPanel(predictor), RetrievePanel(index)]
    assert run_consumers(panels, str(pictures / WHITE)) == [NO_RESULT] * 2
    assert NO_RESULT not in run_consumers(panels, str(next(pictures.glob("*.jpg"))))


def test_one_panel_without_a_result_leaves_the_other_its_own(
    user_folder: Path, pictures: Path, head_gives_nan: None
) -> None:
    panels = [ClassifyPanel(load_adapter(user_folder / "cls")), RetrievePanel(load_index(user_folder / "idx"))]
    refused, answered = run_consumers(panels, str(pictures / WHITE))
    assert refused == NO_RESULT
    assert answered != NO_RESULT


def test_predictions_in_memory_name_the_place_of_the_image(user_folder: Path, white_gives_nan: None) -> None:
    predictor: Predictor = load_adapter(user_folder / "cls")
    predictor.batch_size = 2
    images = [np.full((40, 40, 3), 255 if i == 3 else 90, np.uint8) for i in range(5)]
    with pytest.raises(NotFiniteError, match=r"^image 3: ") as error:
        predictor.predict(images)
    assert error.value.rows == (3,)


def test_a_nan_in_any_output_of_an_export_is_a_difference() -> None:
    good, bad = torch.ones(2, 3), torch.tensor([[1.0, torch.nan]])
    assert np.isnan(difference([good, bad], [good, torch.ones(1, 2)]))  # max() would ignore a nan in second place
    assert difference([good], [good]) == 0


def test_the_rows_of_all_tensors_are_named() -> None:
    values = torch.zeros(4, 2)
    values[2, 1] = torch.inf
    maps = torch.zeros(4, 1, 2, 2)
    maps[0, 0, 1, 1] = torch.nan
    check_finite("features", torch.zeros(4, 2))
    with pytest.raises(NotFiniteError) as error:
        check_finite("features", values, maps)
    assert error.value.rows == (0, 2)
    assert str(error.value).startswith("the model gives features that are not finite (nan or infinite) for 2 images; ")
