"""Heads on backbones that timm or transformers computes, exported and compared with `load_adapter`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dinomed.adapters.export.run import export
from dinomed.adapters.export.source import ExportSource, load_source
from dinomed.adapters.inference.dense import DensePredictor
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.predictor import Predictor
from dinomed.adapters.tasks.classify.predict import ClassifyPredictor
from dinomed.apps import cli
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import TokenModel
from dinomed.errors import UsageError

timm = pytest.importorskip("timm", reason="timm is not installed (pip install dinomed[test])")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install dinomed[test])")
from timm.models import save_for_hf  # noqa: E402

Make = Callable[..., Path]
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8}
VIT = {"embed_dim": 64, "depth": 2, "num_heads": 2}
# family -> the model and its config in transformers, or the name in timm; further settings
FAMILIES: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "CLIP": ("CLIPVisionModel", "CLIPVisionConfig", {}),
    "SigLIP": ("SiglipVisionModel", "SiglipVisionConfig", {}),
    "BEiT": ("BeitModel", "BeitConfig", {"use_relative_position_bias": True}),
    "DINOv3": ("DINOv3ViTModel", "DINOv3ViTConfig", {"num_register_tokens": 4}),
    "EVA-02 of timm": ("eva02_tiny_patch14_224", None, {"img_size": 56}),
    "SigLIP 2 of timm": ("vit_base_patch16_siglip_224", None, {"img_size": 64}),
    "BEiT of timm": ("beit_base_patch16_224", None, {"img_size": 64}),
}
CLOSE = 1e-4  # float32 sums in another order, through a linear head


def write_family(name: str, folder: Path) -> Path:
    """Write a model with random weights as its library saves it."""
    model_name, config_name, more = FAMILIES[name]
    torch.manual_seed(0)
    if config_name is None:
        arguments = {**VIT, **more}
        model = timm.create_model(model_name, pretrained=False, num_classes=3, **arguments)
    else:
        config = getattr(transformers, config_name)(**{**SMALL, "image_size": 64, **more})
        model = getattr(transformers, model_name)(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1.0 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    folder.mkdir()
    if config_name is None:
        size = [3, more["img_size"], more["img_size"]]
        reading = {"input_size": size, "mean": MEAN, "std": STD, "interpolation": "bilinear"}
        config = {"architecture": model_name, "model_args": arguments, "pretrained_cfg": reading}
        save_for_hf(model, folder, model_config={"architecture": model_name}, safe_serialization=True)
        (folder / "config.json").write_text(json.dumps(config))
    else:
        model.save_pretrained(folder)
        square = {"height": 64, "width": 64}
        processor = {"image_mean": MEAN, "image_std": STD, "size": square, "resample": 2}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def predicted(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    if isinstance(predictor, ClassifyPredictor):
        return np.array(list(predictor.probabilities(image).values()))
    assert isinstance(predictor, DensePredictor)
    return predictor.maps(image)


def picture(side: int) -> np.ndarray:
    image = np.random.default_rng(5).integers(0, 160, (side, side, 3))
    image[side // 4 : side // 2, side // 4 : side // 2] += 90
    return image.astype(np.uint8)


def make_head(task: str, name: str, make_adapter: Make, tmp_path: Path) -> Path:
    backbone = write_family(name, tmp_path / "backbone")
    classes = ("a", "b", "c") if task == "classify" else ("lesion",)
    return make_adapter(task, "linear", classes=classes, backbone=backbone)


@pytest.mark.parametrize("task", ["classify", "segment"])
@pytest.mark.parametrize("name", FAMILIES)
def test_safetensors_and_torchscript_predict_the_same(name: str, task: str, make_adapter: Make, tmp_path: Path) -> None:
    folder = make_head(task, name, make_adapter, tmp_path)
    for kind in ("safetensors", "monai"):
        export(load_source(str(folder)), kind, tmp_path / kind)
    ours = load_adapter(folder)
    side = ours.backbone.preprocessing.image_size
    (tmp_path / "backbone").rename(tmp_path / "gone")  # the bundle holds its own
    theirs = load_adapter((tmp_path / "safetensors").rename(tmp_path / "elsewhere"))
    assert theirs.backbone.fingerprint == ours.backbone.fingerprint
    assert not list((tmp_path / "elsewhere").rglob("*.bin"))
    image = picture(side)
    targets = predicted(ours, image)
    assert np.ptp(targets) > 0.01  # a constant answer would compare equal whatever was exported
    assert np.array_equal(targets, predicted(theirs, image))
    network = torch.jit.load(str(tmp_path / "monai" / "models" / "model.ts"))
    with torch.no_grad():
        outputs = network(ours.backbone.preprocessing(image)[None])  # logits of dense heads: the bundle resizes them
    dense = isinstance(ours, DensePredictor)
    outputs = ours.resized(outputs, (side, side)) if dense else outputs[0].numpy()
    assert np.abs(outputs - targets).max() < CLOSE
    card = (tmp_path / "elsewhere" / "README.md").read_text()
    assert ("dinov2" in card.splitlines()[3]) == (name == "DINOv3")


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "task"),
    [("CLIP", "classify"), ("EVA-02 of timm", "classify"), *((name, "segment") for name in FAMILIES)],
)
def test_onnx_predicts_the_same(name: str, task: str, make_adapter: Make, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    folder = make_head(task, name, make_adapter, tmp_path)
    free = name == "DINOv3"
    report = export(load_source(str(folder)), "onnx", tmp_path / "out", dynamic_size=free)
    assert len(report["parity"]["batches"]) == (4 if free else 2)
    session = runtime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    ours = load_adapter(folder)
    image = picture(ours.backbone.preprocessing.image_size)
    pixels = ours.backbone.preprocessing(image)[None].numpy()
    for count in (1, 3):
        (outputs,) = session.run(None, {"pixels": np.repeat(pixels, count, axis=0)})
        assert len(outputs) == count
        assert np.abs(outputs[-1] - predicted(ours, image)).max() < CLOSE


@pytest.mark.parametrize(
    ("name", "task"), [("EVA-02 of timm", "segment"), ("SigLIP 2 of timm", "classify"), ("CLIP", "classify")]
)
def test_the_bundle_runner_of_monai_gives_what_dinomed_predict_gives(
    name: str, task: str, make_adapter: Make, tmp_path: Path, images: Path, run_bundle: Callable[..., dict[str, Any]],
    predicted_rows: Callable[..., dict[str, dict[str, str]]], compare_masks: Callable[..., set[int]],
) -> None:  # fmt: skip
    adapter = make_head(task, name, make_adapter, tmp_path)
    export(load_source(str(adapter)), "monai", tmp_path / "bundle")
    answer = run_bundle(tmp_path / "bundle", images)
    if task == "segment":
        assert compare_masks(answer["images"], adapter, images, tmp_path / "out") == {0, 255}
        return
    rows = predicted_rows(adapter, images, tmp_path / "out")
    assert len(answer["images"]) == len(rows) == 6
    for entry in answer["images"]:
        row = rows[str(Path(entry["image"]).relative_to(images))]
        assert entry["label"] == row["predicted"]
        expected = [float(row[each]) for each in answer["classes"]]
        assert entry["probabilities"] == pytest.approx(expected, abs=CLOSE)


def test_a_backbone_alone_keeps_its_statistics(tmp_path: Path) -> None:
    backbone = load_backbone(write_family("CLIP", tmp_path / "clip"), mean=STD, std=MEAN)
    export(ExportSource(backbone), "safetensors", tmp_path / "out")
    again = load_backbone(tmp_path / "out")
    assert again.fingerprint == backbone.fingerprint
    assert (again.preprocessing.mean, again.preprocessing.std) == (tuple(STD), tuple(MEAN))


def test_stated_statistics_are_those_of_the_written_backbone(
    small_backbone: Callable[..., Path], tmp_path: Path, make_adapter: Make
) -> None:
    save_file(load_backbone(small_backbone()).vit.state_dict(), tmp_path / "alone.safetensors")
    stated = ["--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.3"]
    cli.invoke(
        ["export", str(tmp_path / "alone.safetensors"), "-f", "safetensors", "-o", str(tmp_path / "out"), *stated]
    )
    preprocessing = load_backbone(tmp_path / "out").preprocessing
    assert (preprocessing.mean, preprocessing.std) == (tuple(MEAN), tuple(STD))
    with pytest.raises(UsageError, match=r"an adapter with a fixed backbone .* leave .*mean.* and .*std.* out"):
        cli.invoke(
            ["export", str(make_adapter("classify", "linear", classes=("a", "b"))), "-f", "onnx", "-o", "x", *stated]
        )


def test_what_a_family_cannot_do_is_refused_by_name(tmp_path: Path) -> None:
    source = load_source(str(write_family("EVA-02 of timm", tmp_path / "eva")))
    for kind in ("timm", "transformers"):
        with pytest.raises(UsageError, match=r"is a eva02_tiny_patch14_224 \(timm\) model.* export to timm and trans"):
            export(source, kind, tmp_path / kind)
    with pytest.raises(UsageError, match=r"of a eva02_tiny.* one size only; leave `dynamic_size` out"):
        export(source, "onnx", tmp_path / "onnx", dynamic_size=True)
    source.backbone.preprocessing = source.preprocessing.model_copy(update={"aspect": "keep"})
    with pytest.raises(UsageError, match=r"takes rectangles \(aspect keep\); use `format=safetensors`"):
        export(source, "onnx", tmp_path / "onnx")
    assert not [path for path in tmp_path.glob("*/*") if path.parent.name != "eva"]


def test_a_plug_in_without_a_writer_is_refused_by_name(tmp_path: Path) -> None:
    class Plain(TokenModel):
        family, embed_dim, depth, patch_size, in_channels = "plain (plug-in)", 4, 1, 8, 3

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def architecture(self) -> dict[str, Any]:
            return {}

    backbone = FrozenBackbone(Plain(), Preprocessing(image_size=32), "plain")
    with pytest.raises(UsageError, match=r"a plain \(plug-in\) model cannot be written as a folder; use `format=onnx`"):
        export(ExportSource(backbone), "safetensors", tmp_path / "out")
    assert not list(tmp_path.rglob("*.safetensors"))
