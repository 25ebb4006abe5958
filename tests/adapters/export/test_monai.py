"""MONAI bundles, run by MONAI's own bundle runner, against `dinomed predict`."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinomed.adapters.export.run import export
from dinomed.adapters.export.source import load_source
from dinomed.adapters.inference.loader import load_adapter
from dinomed.images.read import read_image

Make = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]
THREE = ("a", "b", "c")
NAMES = ("a@3T", "b#1", "%c")  # with the signs that MONAI replaces in expressions
NEAR = 1e-4
"""Probabilities closer than this to a decision may be decided either way: TorchScript and dinomed sum float32 in other
orders, as in `dinomed.adapters.export.parity`."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of all that MONAI could read otherwise: sizes, orientation, transparency, modes, names."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "sub").mkdir()
    draw = np.random.default_rng(3)

    def noise(height: int, width: int, channels: int) -> np.ndarray:
        rows = np.linspace(0, 200, height)[:, None, None]
        columns = np.linspace(0, 1, width)[None, :, None]
        return (rows * columns + draw.integers(0, 56, (height, width, channels))).astype(np.uint8)

    Image.fromarray(noise(90, 131, 3)).save(folder / "large.png")
    Image.fromarray(noise(64, 64, 3)).save(folder / "same.png")
    Image.fromarray(noise(40, 30, 3)).save(folder / "sub" / "small.png")
    Image.fromarray(noise(75, 50, 4)).save(folder / "transparent.png")
    Image.fromarray(noise(50, 75, 3)[..., 0]).save(folder / "gray.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: turn it by a quarter
    Image.fromarray(noise(52, 97, 3)).save(folder / "same.jpg", exif=turned)
    return folder


def run_bundle(bundle: Path, images: Path) -> dict[str, Any]:
    """Run a bundle as ``python -m monai.bundle run`` does; the result is `predictions.json`."""
    from monai.bundle import run as run_monai

    run_monai(config_file=str(bundle / "configs" / "inference.json"), bundle_root=str(bundle), dataset_dir=str(images))
    return dict(json.loads((bundle / "output" / "predictions.json").read_text()))


def predicted(run: Run, adapter: Path, images: Path, out: Path) -> dict[str, dict[str, str]]:
    """Return the rows that `dinomed predict` writes, by the path of the image in its folder."""
    code, _, err = run("predict", adapter, images, "-o", out, "--names", "--quiet")
    assert code == 0, err
    with open(out / "predictions.csv", newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("linear", {}),
        ("linear", {"classes": THREE, "kind": "multiclass"}),
        ("linear", {"classes": THREE, "kind": "multilabel"}),
    ],
)
def test_the_label_of_a_bundle_is_the_mask_of_dinomed_predict(
    head: str, options: dict[str, Any], make_adapter: Make, images: Path, tmp_path: Path, run: Run
) -> None:
    adapter = make_adapter("segment", head, **options)
    export(load_source(str(adapter)), "monai", tmp_path / "bundle")
    entries = run_bundle(tmp_path / "bundle", images)["images"]
    rows, predictor = predicted(run, adapter, images, tmp_path / "out"), load_adapter(adapter)
    assert len(entries) == len(rows) == 6
    assert len({entry["file"] for entry in entries}) == 6  # same.png and same.jpg have a file each
    seen: set[int] = set()
    for entry in entries:
        name = str(Path(entry["image"]).relative_to(images))
        label = np.asarray(Image.open(entry["file"]))
        mask = np.asarray(Image.open(tmp_path / "out" / rows[name]["mask"]))
        assert label.shape == mask.shape
        assert label.dtype == mask.dtype
        clear = decided_clearly(predictor, read_image(images / name))
        assert clear.mean() > 0.99
        assert np.array_equal(label[clear], mask[clear])
        seen |= set(np.unique(label).tolist())
    assert len(seen) > 1  # a mask of one value would be equal whatever was resized
    output = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())["network_data_format"]
    labels = output["outputs"]["pred"]
    assert set(labels["channel_def"].values()) - {"background"} == set(predictor.classes)
    highest = {"multiclass": 2, "multilabel": 1 + 2 + 4}.get(options.get("kind", "binary"), 1)
    assert labels["value_range"] == [0, highest]
    assert len(predictor.classes) == 1 or max(seen) <= highest
    assert ("sum" in labels.get("description", "")) == (highest == 7)


def decided_clearly(predictor: Any, image: np.ndarray) -> np.ndarray:
    """Return the pixels (H, W) whose decision rounding errors do not change."""
    values = predictor.probabilities(image)
    if predictor.exclusive:
        first, second = np.sort(values, axis=0)[::-1][:2]
        return np.asarray(first - second > NEAR)
    limits = np.array(predictor.thresholds)[:, None, None]
    return np.asarray((np.abs(values - limits) > NEAR).all(axis=0))


@pytest.mark.parametrize("several", [False, True])
def test_a_bundle_of_a_classifier_gives_the_label_of_dinomed_predict(
    several: bool, make_adapter: Make, images: Path, tmp_path: Path, run: Run
) -> None:
    adapter = make_adapter(
        "classify", "knn", classes=NAMES, usage={"multilabel": True, "separator": "+"} if several else {}
    )
    export(load_source(str(adapter)), "monai", tmp_path / "bundle")
    answer = run_bundle(tmp_path / "bundle", images)
    rows = predicted(run, adapter, images, tmp_path / "out")
    assert answer["classes"] == list(NAMES)
    assert len(answer["images"]) == 6
    for entry in answer["images"]:
        row = rows[str(Path(entry["image"]).relative_to(images))]
        assert entry["label"] == row["predicted"]
        expected = [float(row[name]) for name in NAMES]
        assert entry["probabilities"] == pytest.approx(expected, abs=NEAR)


def test_a_bundle_of_a_depth_estimator_writes_maps_of_the_size_of_the_image(
    make_adapter: Make, images: Path, tmp_path: Path
) -> None:
    adapter = make_adapter("depth", "linear")
    export(load_source(str(adapter)), "monai", tmp_path / "bundle")
    predictor = load_adapter(adapter)
    for entry in run_bundle(tmp_path / "bundle", images)["images"]:
        expected = predictor.maps(read_image(entry["image"]))[0]
        assert np.asarray(Image.open(entry["file"])) == pytest.approx(expected, abs=9 * NEAR)  # depths of 1 to 9


def test_a_bundle_of_a_gray_backbone_gives_its_features(small_backbone: Make, images: Path, tmp_path: Path) -> None:
    import torch

    source = load_source(str(small_backbone(channels=1)))
    export(source, "monai", tmp_path / "bundle")
    for entry in run_bundle(tmp_path / "bundle", images)["images"]:
        image = read_image(entry["image"], channels=1)
        with torch.no_grad():
            expected = source.reference(source.preprocessing(image)[None])[0][0]
        assert entry["cls"] == pytest.approx(expected.tolist(), abs=NEAR * float(expected.abs().max()))
