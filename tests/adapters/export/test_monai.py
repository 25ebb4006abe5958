"""MONAI bundles, run by MONAI's own bundle runner, against `dinomed predict`."""

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
RunBundle = Callable[[Path, Path], dict[str, Any]]
THREE = ("a", "b", "c")
NAMES = ("a@3T", "b#1", "%c")  # with the signs that MONAI replaces in expressions
NEAR = 1e-4  # as in conftest.py


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("linear", {}),
        ("linear", {"classes": THREE, "kind": "multiclass"}),
        ("linear", {"classes": THREE, "kind": "multilabel"}),
    ],
)
def test_the_label_of_a_bundle_is_the_mask_of_dinomed_predict(
    head: str, options: dict[str, Any], make_adapter: Make, images: Path, tmp_path: Path, run_bundle: RunBundle,
    compare_masks: Callable[..., set[int]],
) -> None:  # fmt: skip
    adapter = make_adapter("segment", head, **options)
    export(load_source(str(adapter)), "monai", tmp_path / "bundle")
    entries = run_bundle(tmp_path / "bundle", images)["images"]
    predictor = load_adapter(adapter)
    seen = compare_masks(entries, adapter, images, tmp_path / "out")
    output = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())["network_data_format"]
    labels = output["outputs"]["pred"]
    assert set(labels["channel_def"].values()) - {"background"} == set(predictor.classes)
    highest = {"multiclass": 2, "multilabel": 1 + 2 + 4}.get(options.get("kind", "binary"), 1)
    assert labels["value_range"] == [0, highest]
    assert len(predictor.classes) == 1 or max(seen) <= highest
    assert ("sum" in labels.get("description", "")) == (highest == 7)


@pytest.mark.parametrize("several", [False, True])
def test_a_bundle_of_a_classifier_gives_the_label_of_dinomed_predict(
    several: bool, make_adapter: Make, images: Path, tmp_path: Path, run_bundle: RunBundle, predicted_rows: Callable
) -> None:
    adapter = make_adapter(
        "classify", "knn", classes=NAMES, usage={"multilabel": True, "separator": "+"} if several else {}
    )
    export(load_source(str(adapter)), "monai", tmp_path / "bundle")
    answer = run_bundle(tmp_path / "bundle", images)
    rows = predicted_rows(adapter, images, tmp_path / "out")
    assert answer["classes"] == list(NAMES)
    assert len(answer["images"]) == 6
    for entry in answer["images"]:
        row = rows[str(Path(entry["image"]).relative_to(images))]
        assert entry["label"] == row["predicted"]
        expected = [float(row[name]) for name in NAMES]
        assert entry["probabilities"] == pytest.approx(expected, abs=NEAR)


def test_a_bundle_of_a_depth_estimator_writes_maps_of_the_size_of_the_image(
    make_adapter: Make, images: Path, tmp_path: Path, run_bundle: RunBundle
) -> None:
    adapter = make_adapter("depth", "linear")
    export(load_source(str(adapter)), "monai", tmp_path / "bundle")
    predictor = load_adapter(adapter)
    for entry in run_bundle(tmp_path / "bundle", images)["images"]:
        expected = predictor.maps(read_image(entry["image"]))[0]
        assert np.asarray(Image.open(entry["file"])) == pytest.approx(expected, abs=9 * NEAR)  # depths of 1 to 9


def test_a_bundle_of_a_gray_backbone_gives_its_features(
    small_backbone: Make, images: Path, tmp_path: Path, run_bundle: RunBundle
) -> None:
    import torch

    source = load_source(str(small_backbone(channels=1)))
    export(source, "monai", tmp_path / "bundle")
    for entry in run_bundle(tmp_path / "bundle", images)["images"]:
        image = read_image(entry["image"], channels=1)
        with torch.no_grad():
            expected = source.reference(source.preprocessing(image)[None])[0][0]
        assert entry["cls"] == pytest.approx(expected.tolist(), abs=NEAR * float(expected.abs().max()))
