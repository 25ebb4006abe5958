"""Ensembles in each export format, compared with the predictions of `load_adapter`."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinomed.adapters.export.run import export
from dinomed.adapters.export.source import load_source
from dinomed.adapters.fitting.config import TrainConfig
from dinomed.adapters.folds.train import train_folds
from dinomed.adapters.inference.dense import DensePredictor
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.predictor import Predictor
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.classify.predict import ClassifyPredictor
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.predict import SegmentPredictor
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.images.read import read_image

SHORT = {"epochs": 1, "min_steps": 0, "batch_size": 16}
CONFIGS: dict[str, TrainConfig] = {
    "classify": ClassifyConfig.model_validate({"head": {"name": "logistic"}}),
    "tuned": ClassifyConfig.model_validate({"tune": "last:1", "fit": SHORT}),
    "segment": SegmentConfig.model_validate({"image_size": 32, "fit": SHORT, "augment": "none"}),
}
CLOSE = 1e-4
"""Float32 sums in another order differ by about 1e-6; another computation, such as one member alone, by 1e-3 or more
(which each test checks)."""
Build = Callable[[str], Path]


@pytest.fixture(scope="module")
def build(
    backbone: FrozenBackbone, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Train an ensemble of two members once for each of `CONFIGS`."""
    folder, made = tmp_path_factory.mktemp("ensembles"), dict[str, Path]()

    def train(name: str) -> Path:
        if name not in made:
            place = folder / name
            made[name] = train_folds(backbone, manifest, place, CONFIGS[name], 2, cache=folder / "cache").folder
        return made[name]

    return train


def picture(predictor: Predictor) -> np.ndarray:
    """Noise and a bright square at the size that the backbone reads, so that nothing is resized."""
    side = predictor.backbone.preprocessing.image_size
    image = np.random.default_rng(5).integers(0, 160, (side, side, 3))
    image[side // 4 : side // 2, side // 4 : side // 2] += 90
    return image.astype(np.uint8)


def predicted(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    if isinstance(predictor, ClassifyPredictor):
        return np.array(list(predictor.probabilities(image).values()))
    maps: np.ndarray = predictor.maps(image)  # type: ignore[attr-defined]
    return maps


def check(outputs: np.ndarray, folder: Path, image: np.ndarray) -> None:
    """Compare outputs with the ensemble, and see that they are not those of a member."""
    assert np.abs(outputs - predicted(load_adapter(folder), image)).max() < CLOSE
    assert np.abs(outputs - predicted(load_adapter(folder / "fold_1"), image)).max() > 10 * CLOSE


@pytest.mark.parametrize("name", CONFIGS)
def test_the_graph_of_an_ensemble_is_the_mean_of_its_members_at_every_size(name: str, build: Build) -> None:
    """The graph that is written as ONNX, still in torch."""
    folder = build(name)
    source, predictor = load_source(str(folder)), load_adapter(folder)
    image = picture(predictor)
    pixels = predictor.backbone.preprocessing(image)[None]
    with torch.no_grad():
        for graph in (source.graph(pixels.shape[-1]), source.graph(None)):
            outputs = graph(pixels)
            assert outputs.dtype == torch.float32
            check(outputs[0].numpy(), folder, image)
        wide = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(2))
        assert (source.graph(None)(wide) - source.reference(wide)[0]).abs().max() < CLOSE


@pytest.mark.parametrize(
    "name", [name if name == "tuned" else pytest.param(name, marks=pytest.mark.long) for name in CONFIGS]
)
def test_torchscript_of_an_ensemble_returns_the_mean_of_its_members(name: str, build: Build, tmp_path: Path) -> None:
    monai_bundle = pytest.importorskip("monai.bundle")
    folder = build(name)
    predictor = load_adapter(folder)
    export(load_source(str(folder)), "monai", tmp_path / "out")
    network, image = torch.jit.load(str(tmp_path / "out" / "models" / "model.ts")), picture(predictor)
    pixels = predictor.backbone.preprocessing(image)[None]
    with torch.no_grad():
        for outputs in (network(pixels), network(pixels.repeat(3, 1, 1, 1))[2:]):
            if isinstance(predictor, DensePredictor):  # logits of all members, which the bundle resizes and averages
                check(predictor.finish(predictor.resized(outputs, image.shape[:2])), folder, image)
            else:
                check(outputs[0].numpy(), folder, image)
    if isinstance(predictor, SegmentPredictor):
        (tmp_path / "images").mkdir()
        Image.fromarray(image).resize((70, 45)).save(tmp_path / "images" / "a.png")
        with warnings.catch_warnings(action="ignore"):
            monai_bundle.run(
                config_file=str(tmp_path / "out" / "configs" / "inference.json"), bundle_root=str(tmp_path / "out"),
                dataset_dir=str(tmp_path / "images"),
            )  # fmt: skip
        label = np.asarray(Image.open(tmp_path / "out" / "output" / "a.png.png"))
        probabilities = predictor.probabilities(read_image(tmp_path / "images" / "a.png"))
        clear = np.abs(probabilities[0] - predictor.threshold) > CLOSE
        assert np.array_equal(label[clear] == 255, predictor.decide(probabilities)[0][clear] == 1)
    else:
        config = json.loads((tmp_path / "out" / "configs" / "inference.json").read_text())
        assert all(label in config["run"][1] for label in predictor.classes)


@pytest.mark.long
@pytest.mark.parametrize(("name", "dynamic_size"), [("tuned", False), ("segment", True)])
def test_onnx_of_an_ensemble_returns_the_mean_of_its_members(
    name: str, dynamic_size: bool, build: Build, tmp_path: Path
) -> None:
    runtime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    folder = build(name)
    report = export(load_source(str(folder)), "onnx", tmp_path / "out", dynamic_size=dynamic_size)
    session = runtime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    predictor = load_adapter(folder)
    image = picture(predictor)
    pixels = predictor.backbone.preprocessing(image)[None].numpy()
    for count in (1, 3):
        (outputs,) = session.run(None, {"pixels": np.repeat(pixels, count, axis=0)})
        assert len(outputs) == count
        check(outputs[-1], folder, image)
    source = load_source(str(folder))
    if dynamic_size:
        wide = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(2))
        (outputs,) = session.run(None, {"pixels": wide.numpy()})
        assert np.abs(outputs - source.reference(wide)[0].numpy()).max() < CLOSE
    model = onnx.load(tmp_path / "out" / "model.onnx")
    types = {tensor.data_type for tensor in model.graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in model.graph.value_info}
    assert onnx.TensorProto.DOUBLE not in types  # not every runtime has float64
    facts = {each.key: each.value for each in model.metadata_props}
    assert json.loads(facts["members"]) == json.loads(json.dumps(report["source"]["members"]))
    assert json.loads(facts["usage"]) == report["source"]["usage"]


@pytest.mark.parametrize("name", CONFIGS)
def test_safetensors_of_an_ensemble_holds_one_backbone_and_predicts_the_same(
    name: str, build: Build, tmp_path: Path
) -> None:
    folder = build(name)
    report = export(load_source(str(folder)), "safetensors", tmp_path / "out")
    assert [file for file in report["files"] if file.startswith("backbone/")]
    assert [file for file in report["files"] if "backbone/" in file and not file.startswith("backbone/")] == []
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    ours, theirs = load_adapter(folder), load_adapter(moved)
    image = picture(ours)
    assert np.array_equal(predicted(ours, image), predicted(theirs, image))
    check(predicted(theirs, image), folder, image)
    assert theirs.metadata["threshold"] == ours.metadata["threshold"]
    assert theirs.metadata["usage"] == ours.metadata["usage"]
    member = load_adapter(moved / "fold_2")
    assert np.array_equal(predicted(member, image), predicted(load_adapter(folder / "fold_2"), image))


def test_the_description_names_each_member_and_no_path(build: Build, tmp_path: Path) -> None:
    folder = build("tuned")
    report = export(load_source(str(folder)), "safetensors", tmp_path / "out")
    members: list[dict[str, Any]] = report["source"]["members"]
    records = [load_adapter(folder / name).metadata for name in ("fold_1", "fold_2")]
    assert [member["backbone"] for member in members] == [record["tuned"]["fingerprint"] for record in records]
    assert [member["usage"] for member in members] == [record["usage"] for record in records]
    usage, described = load_adapter(folder).metadata["usage"], report["source"]["usage"]
    assert usage["cross"]
    assert usage["abstention"]
    assert described == {name: usage[name] for name in usage if name not in ("abstention", "cross")}
    assert members[0]["backbone"] != members[1]["backbone"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "An ensemble of 2 classify adapters (linear)" in card
    assert "each output is the mean of those of 2 adapters" in card
    assert "each member has its own tuned backbone (last:1)" in card
    assert "the temperature of each member (applied already)" in card
    for file in ("README.md", "export.json"):
        assert str(folder.parent) not in (tmp_path / "out" / file).read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("classify", "holds only one backbone; give the backbone on which the ensemble was trained"),
        ("tuned", "holds only one backbone; each member of an ensemble has its own tuned one; export a member"),
    ],
)
def test_formats_of_backbones_refuse_an_ensemble(name: str, message: str, build: Build, tmp_path: Path) -> None:
    for kind in ("timm", "transformers"):
        with pytest.raises(UsageError, match=message):
            export(load_source(str(build(name))), kind, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="is an ensemble with a fixed backbone and image size"):
        load_source(str(build(name)), image_size=64)
