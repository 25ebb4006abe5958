"""Backbone tuning: changed weights, content of the bundle, and use of the tuned backbone."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pydantic import ValidationError

from dinomed.adapters.bundle import load_head, read_record
from dinomed.adapters.evaluation.evaluate import evaluate
from dinomed.adapters.export.run import export
from dinomed.adapters.export.source import load_source
from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting import head_fit
from dinomed.adapters.fitting.config import BackboneTuneConfig
from dinomed.adapters.fitting.optimizers import ParameterGroup, check_precision, resolve_precision
from dinomed.adapters.fitting.tune import LearningBackbone
from dinomed.adapters.heads.linear import LinearSegmenter
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.depth.config import DepthConfig
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.predict import SegmentPredictor
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.config import build_config, to_yaml
from dinomed.datasets.manifest import Manifest, build_manifest, read_manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.features.compute import compute_features
from dinomed.images.read import read_image
from dinomed.io.tensor_file import read_tensors

FIT = {"epochs": 2, "patience": 2, "batch_size": 16, "min_steps": 0, "refit": "never"}
CONFIGS: dict[str, Any] = {"segment": SegmentConfig, "classify": ClassifyConfig, "depth": DepthConfig}
CASES = [("segment", "last:2"), ("classify", "lora:2"), ("depth", "last:1"), ("segment", "lora:2")]


@pytest.fixture(scope="module")
def place(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    shutil.copytree(tiny_backbone, folder / "ssl")
    return folder


@pytest.fixture(scope="module")
def manifest(lesion_manifest: Path, place: Path) -> Manifest:
    """With depth maps: a slope from 1 to 3 over each image."""
    shutil.copytree(lesion_manifest.parent / "lesions", place / "lesions")
    lesions = read_manifest(lesion_manifest)
    names = []
    for row, (height, width) in enumerate(zip(lesions.column("height"), lesions.column("width"), strict=True)):
        names.append(f"depth_{row}.png")
        slope = np.linspace(1000, 3000, width, dtype=np.uint16)[None].repeat(height, 0)
        Image.fromarray(slope).save(place / "lesions" / names[-1])
    columns = {name: lesions.column(name) for name in lesions.columns} | {"depth": names}
    return build_manifest(columns, place / "lesions")


def fit(place: Path, manifest: Manifest, task: str, tune: str) -> Path:
    if tune.startswith("lora"):
        pytest.importorskip("peft")
    folder = place / f"{task}-{tune.replace(':', '')}"
    if not folder.exists():
        scale = {"scale": 0.001} if task == "depth" else {}
        size = {} if task == "classify" else {"image_size": 48}
        config = build_config(CONFIGS[task], {"tune": tune, "fit": FIT, "augment": "light", **size, **scale}, "test")
        fit_head(load_backbone(place / "ssl"), manifest, folder, config, cache=place / "cache")
    return folder


@pytest.mark.parametrize(("head", "warmup"), [("hybrid_unet", 0.3), ("linear", 0.1)])
def test_the_backbone_warms_up_as_long_as_the_head(
    head: str, warmup: float, place: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    groups: list[ParameterGroup] = []

    def stop(*_: Any, **options: Any) -> None:
        groups.extend(options["groups"])
        raise KeyboardInterrupt

    monkeypatch.setattr(head_fit, "run_epochs", stop)
    config = SegmentConfig.model_validate({"head": {"name": head}, "tune": "last:1", "image_size": 48})
    with pytest.raises(KeyboardInterrupt):
        fit_head(load_backbone(place / "ssl"), manifest, tmp_path / head, config, cache=place / "cache")
    assert [group.warmup for group in groups] == [config.fit.warmup, warmup]
    assert max(config.fit.warmup, 0.1) == warmup


@pytest.mark.parametrize(("task", "tune"), CASES)
def test_only_the_tuned_weights_change(place: Path, manifest: Manifest, task: str, tune: str) -> None:
    before = (place / "ssl" / "model.safetensors").read_bytes()
    folder = fit(place, manifest, task, tune)
    assert (place / "ssl" / "model.safetensors").read_bytes() == before
    base, tuned = load_backbone(place / "ssl").vit.state_dict(), load_adapter(folder).backbone.vit.state_dict()
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    blocks, names = len(load_backbone(place / "ssl").vit.blocks), set(base)
    if tune.startswith("last"):
        last = tuple(f"blocks.{blocks - 1 - back}." for back in range(int(tune[-1])))
        wanted = {name for name in names if name.startswith(last)}
    else:
        wanted = {f"blocks.{i}.attn.{layer}.weight" for i in range(blocks) for layer in ("qkv", "proj")}
    # The bias of keys moves every logit of a row alike: its gradient is 0 but for rounding; its name is in qkv's.
    assert changed == wanted
    stored = {name for name in read_tensors(folder / "adapter.safetensors") if name.startswith("backbone.")}
    assert stored == {f"backbone.{name}" for name in wanted}
    if tune.startswith("lora"):  # W + (alpha / rank) B A: a change of rank 2
        difference = (tuned["blocks.0.attn.qkv.weight"] - base["blocks.0.attn.qkv.weight"]).double()
        values = torch.linalg.svdvals(difference)
        assert values[1] > 0
        assert values[2] < 1e-4 * values[0]  # W + BA is rounded to float32: 2^-24 of W, not of BA


@pytest.mark.parametrize(("task", "tune"), CASES)
def test_loading_restores_the_trained_head_and_the_tuned_backbone(
    place: Path, manifest: Manifest, task: str, tune: str
) -> None:
    folder = fit(place, manifest, task, tune)
    record, predictor = read_record(folder), load_adapter(folder)
    assert record.tuned is not None
    assert record.tuned.how == tune
    assert predictor.backbone.fingerprint == record.tuned.fingerprint != record.backbone.fingerprint
    vit = deepcopy(load_backbone(place / "ssl").vit)  # by hand, from the file alone
    tensors = read_tensors(folder / "adapter.safetensors")
    for name, value in vit.state_dict().items():
        value.copy_(tensors.get(f"backbone.{name}", value))
    by_hand = FrozenBackbone(vit, record.preprocessing, "by hand")
    pixels = record.preprocessing(read_image(manifest.path(0)))[None]
    head = load_head(folder, record)
    with torch.no_grad():
        logits = head(compute_features(by_hand, pixels, head.feature_spec.blocks, head.feature_spec.patches))
    assert torch.equal(predictor.logits(pixels), logits)
    metrics = evaluate(folder, manifest, "val")["metrics"]
    key = {"segment": "dice", "classify": "auroc", "depth": "rmse"}[task]
    # The fit has measured the same on its own copy, whose adapters were not merged: products in another order.
    # Thresholds and ranks may turn over at a pixel or a pair by that.
    assert metrics[key] == pytest.approx(record.validation[key], rel=2e-3)
    assert "tuned" in (folder / "card.md").read_text()
    assert "frozen" not in (folder / "card.md").read_text()


def test_tuned_weights_are_covered_by_the_hash(place: Path, manifest: Manifest, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder = fit(place, manifest, "segment", "last:2")
    shutil.copytree(place / "ssl", tmp_path / "ssl")
    shutil.copytree(folder, tmp_path / "seg")
    path = tmp_path / "seg" / "adapter.safetensors"
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = read_tensors(path)
    tensors["backbone.blocks.2.norm1.weight"][0] += 1e-3
    save_file(tensors, path, header)
    with pytest.raises(DinomedError, match="damaged"):
        load_adapter(tmp_path / "seg")


@pytest.mark.parametrize("kind", ["safetensors", pytest.param("onnx", marks=pytest.mark.long), "timm"])
def test_an_exported_adapter_has_the_tuned_backbone(place: Path, manifest: Manifest, tmp_path: Path, kind: str) -> None:
    for package in {"onnx": ("onnx", "onnxruntime", "onnxscript"), "timm": ("timm",)}.get(kind, ()):
        pytest.importorskip(package)
    folder = fit(place, manifest, "segment", "last:2")
    predictor = load_adapter(folder)
    assert isinstance(predictor, SegmentPredictor)
    image = read_image(manifest.path(1))
    export(load_source(str(folder)), kind, tmp_path / "out")  # compares with `predictor` before it is kept
    if kind == "safetensors":
        again = load_adapter(tmp_path / "out")
        assert isinstance(again, SegmentPredictor)
        assert again.backbone.fingerprint == predictor.backbone.fingerprint
        assert (again.probability(image) == predictor.probability(image)).all()
    elif kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(next((tmp_path / "out").glob("*.onnx"))))
        pixels = predictor.preprocessing(image)[None]
        logits = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0]
        wanted = predictor.resized(predictor.logits(pixels), tuple(pixels.shape[-2:]))
        np.testing.assert_allclose(logits[0], wanted, atol=1e-4)  # the exporter's own limit for float32 kernels
    else:
        tensors = read_tensors(next((tmp_path / "out").glob("*.safetensors")))
        ours = predictor.backbone.vit.state_dict()["blocks.2.mlp.fc1.weight"]
        assert any(value.shape == ours.shape and torch.equal(value, ours) for value in tensors.values())


def test_a_copy_starts_equal_to_its_base_and_later_blocks_have_larger_rates(tiny_backbone: Path) -> None:
    base = load_backbone(tiny_backbone)
    images = torch.rand(2, 3, 32, 32)
    wanted = base(images, (0, 2))
    for word in ("last:2", "lora:2"):
        if word.startswith("lora"):
            pytest.importorskip("peft")
        config = BackboneTuneConfig.model_validate(word)
        copy = LearningBackbone(base, config, (0, 2), seed=0)
        for tokens, wanted_tokens in zip(copy(images, (0, 2)), wanted, strict=True):
            assert torch.equal(tokens.patches, wanted_tokens.patches)
        copy(images)[0].patches.sum().backward()
        assert all(p.grad is None for p in base.vit.parameters())
    config = BackboneTuneConfig(last=2, learning_rate=1e-3, layer_decay=0.5)
    rates = [group.learning_rate for group in LearningBackbone(base, config, (0, 1), seed=0).groups()]
    assert rates == [1e-3, 5e-4]
    below = LearningBackbone(base, config, (0, 1), seed=0)  # counted from the last block that the head looks at
    learns = {name.split(".")[1] for name, p in below.vit.named_parameters() if p.requires_grad}
    assert learns == {"0", "1"}
    with pytest.raises(UsageError, match="last:2, but the head uses only 1 blocks"):
        LearningBackbone(base, config, (0,), seed=0)


@pytest.mark.parametrize(("word", "parsed"), [("none", None), ("last:3", 3), ("lora", 8), ("lora:4", 4)])
def test_tune_words_are_parsed_and_written(word: str, parsed: int | None) -> None:
    config = BackboneTuneConfig.model_validate(word)
    assert (config.last or (config.lora and config.lora.rank)) == parsed
    assert config.word in (word, f"{word}:8")
    segment = build_config(SegmentConfig, {"tune": word}, "test")
    assert build_config(SegmentConfig, yaml.safe_load(to_yaml(segment)), "again") == segment


@pytest.mark.parametrize("word", ["last", "last:0", "last:-1", "lora:0", "lora:x", "all", 3])
def test_invalid_tune_words_are_refused(word: Any) -> None:
    with pytest.raises(ValidationError):
        BackboneTuneConfig.model_validate(word)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tune": "lora", "head": {"name": "knn"}}, "knn is solved at once"),
        ({"augment": "light", "unit": "group"}, "for single images"),
        ({"tune": "last:1", "fit": {"optimizer": "lbfgs"}}, "lbfgs uses all images at once"),
        ({"fit": {"optimizer": "lbfgs", "precision": "bfloat16"}}, "not exact enough for lbfgs"),
        ({"augment": "strong"}, "augment"),
        ({"tune": {"last": 1, "lora": {}}}, "choose one"),
    ],
)
def test_conflicting_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_config(ClassifyConfig, settings, "config")


def fit_settings(precision: str, optimizer: str = "adamw") -> SegmentConfig:
    settings = {"augment": "none", "fit": {"precision": precision, "optimizer": optimizer}}
    return build_config(SegmentConfig, settings, "config")


def test_half_precision_is_refused_where_it_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for amx in (False, True):
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda amx=amx: amx)
        with pytest.raises(UsageError, match="float16 needs CUDA, the device is cpu; use auto or float32"):
            check_precision(fit_settings("float16").fit, cpu)
        if amx:
            check_precision(fit_settings("bfloat16").fit, cpu)
        else:
            with pytest.raises(UsageError, match="bfloat16 needs CUDA or a processor with AMX, the device is cpu"):
                check_precision(fit_settings("bfloat16").fit, cpu)
    for kind in ("float32", "bfloat16", "float16"):
        check_precision(fit_settings(kind).fit, cuda)


def test_auto_is_the_faster_precision_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    resolved = lambda config, device=cpu: resolve_precision(config, device).fit.precision
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: True)
    assert resolved(fit_settings("auto")) == "bfloat16"
    assert resolved(fit_settings("auto", optimizer="lbfgs")) == resolved(fit_settings("float32")) == "float32"
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    assert resolved(fit_settings("auto")) == "float32"
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: not including_emulation)
    assert resolved(fit_settings("auto"), torch.device("cuda")) == "bfloat16"
    assert resolved(fit_settings("auto"), torch.device("mps")) == "float32"


def test_lora_without_peft_is_refused(tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinomed.backbones.lora.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'dinomed\[lora\]'"):
        LearningBackbone(load_backbone(tiny_backbone), BackboneTuneConfig.model_validate("lora"), (2,), seed=0)


@pytest.mark.parametrize(
    ("precision", "tune"),
    [
        ("bfloat16", "none"),
        ("float16", "last:1"),
        pytest.param("bfloat16", "last:1", marks=pytest.mark.long),
        pytest.param("float16", "none", marks=pytest.mark.long),
    ],
)
def test_half_precision_trains_as_well_as_float32(
    precision: str, tune: str, place: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On any CPU, where it may be refused to users: autocast and the scaler of gradients are the same code there."""
    for module in ("head_fit", "feature_sources.choose"):
        monkeypatch.setattr(f"dinomed.adapters.fitting.{module}.check_precision", lambda config, device: None)
    seen: list[torch.dtype] = []
    forward = LinearSegmenter.forward

    def watch(self: LinearSegmenter, features: Any) -> torch.Tensor:
        out = forward(self, features)
        seen.append(out.dtype)
        return out

    monkeypatch.setattr(LinearSegmenter, "forward", watch)
    losses = {}
    for kind in ("float32", precision):
        settings = {"image_size": 48, "tune": tune, "fit": {**FIT, "optimizer": "adamw", "precision": kind}}
        config = build_config(SegmentConfig, settings, "test")
        out = tmp_path / kind
        fit_head(load_backbone(place / "ssl"), manifest, out, config, cache=place / "cache")
        losses[kind] = [json.loads(line)["train_loss"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert {torch.float32, {"bfloat16": torch.bfloat16, "float16": torch.float16}[precision]} == set(seen)
    assert losses[precision] != losses["float32"]
    assert losses[precision] == pytest.approx(losses["float32"], rel=0.01)  # bfloat16 has 8 bits
    tensors = read_tensors(tmp_path / precision / "adapter.safetensors")
    assert {t.dtype for name, t in tensors.items() if name.startswith(("head.linear", "backbone."))} == {torch.float32}
