"""Each export format read by its tool and compared with dinomed, and refused exports."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from dinomed.adapters.adapter import FeatureSpec
from dinomed.adapters.export import parity
from dinomed.adapters.export.graph import PortableViT, resampling
from dinomed.adapters.export.run import export
from dinomed.adapters.export.source import ExportSource, load_source
from dinomed.adapters.fit import fit_head
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.backbones.config import ViTConfig
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.datasets.manifest import read_manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.features.compute import compute_features
from dinomed.images.read import read_image

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"layerscale": 1e-5, "position_antialias": False, "position_offset": 0.1},
    "registers": {"layerscale": 1e-5, "num_registers": 4},
    "swiglu": {"layerscale": 1e-5, "feed_forward": "swiglu"},
    "no_layerscale": {"layerscale": None},
    "gray": {"layerscale": None, "in_channels": 1},
    "stem": {"layerscale": None, "stem": "convolutional"},
}
OF_LIBRARIES = [kind for kind in KINDS if kind != "stem"]  # timm and transformers have no such model


def make(kind: str, image_size: int = 48) -> FrozenBackbone:
    """Random weights in which every parameter counts; positions are for 32 px, images of `image_size`."""
    config = ViTConfig(embed_dim=24, depth=2, num_heads=2, patch_size=8, image_size=32, **KINDS[kind])
    generator = torch.Generator().manual_seed(0)
    vit = VisionTransformer(config)
    for parameter in vit.parameters():
        scale = 1.0 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        parameter.data.copy_(0.3 + scale * torch.randn(parameter.shape, generator=generator))
    reading = Preprocessing(image_size=image_size)
    if config.in_channels == 1:
        reading = Preprocessing(image_size=image_size, mean=(0.5,), std=(0.2,), channels=1)
    return FrozenBackbone(vit, reading, kind)


def expected(backbone: FrozenBackbone, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = compute_features(backbone, pixels, (-1,), True)
    return features.cls, features.patches.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("offset", [0.0, 0.1])
@pytest.mark.parametrize("antialias", [True, False])
def test_positions_are_resized_as_torch_does(antialias: bool, offset: float) -> None:
    grid = torch.randn(1, 5, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for count in (1, 3, 8, 11, 16, 37):
        size = {"scale_factor": [(count + offset) / 9] * 2} if offset else {"size": (count, count)}
        targets = interpolate(grid, mode="bicubic", antialias=antialias, **size)
        weights = resampling(torch.arange(count).double(), 9, antialias=antialias, offset=offset)
        resized = torch.einsum("ri,bcij,sj->bcrs", weights, grid, weights)
        assert (resized - targets).abs().max() < 1e-5, count  # torch computes scales and sources in float32


@pytest.mark.parametrize("kind", KINDS)
def test_the_portable_vit_equals_the_vit_at_every_size(kind: str) -> None:
    backbone = make(kind)
    for image_size, shapes in ((48, [(48, 48)]), (None, [(48, 48), (32, 32), (16, 72)])):
        portable = PortableViT(backbone.vit, FeatureSpec((0, -1), patches=True), image_size)
        for height, width in shapes:
            pixels = torch.randn(2, backbone.preprocessing.channels, height, width)
            with torch.no_grad():
                output = portable(pixels)
            targets = compute_features(backbone, pixels, (0, -1), True)
            for name in ("cls", "mean", "patches"):
                # float32 sums of 24 products; positions made in another order
                assert (getattr(output, name) - getattr(targets, name)).abs().max() < 5e-5


@pytest.mark.parametrize("kind", OF_LIBRARIES)
def test_timm_reads_its_export(kind: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    backbone = make(kind)
    report = export(ExportSource(backbone), "timm", tmp_path / "out")
    assert report["parity"]["largest_difference"] < 1e-5
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    pixels = torch.randn(2, backbone.preprocessing.channels, 48, 48)
    cls, patches = expected(backbone, pixels)
    with torch.no_grad():
        tokens = theirs.forward_features(pixels)
        assert (theirs(pixels) - cls).abs().max() < 1e-5  # the pooled output is the class token
    assert (tokens[:, theirs.num_prefix_tokens :] - patches).abs().max() < 1e-5
    config = timm.data.resolve_model_data_config(theirs)
    assert tuple(config["mean"]) == backbone.preprocessing.mean
    assert config["input_size"][1:] == (48, 48)


@pytest.mark.parametrize("kind", OF_LIBRARIES)
def test_transformers_and_dinomed_read_the_export_for_transformers(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    backbone = make(kind)
    export(ExportSource(backbone), "transformers", tmp_path / "out")
    theirs, loading_info = transformers.AutoModel.from_pretrained(
        tmp_path / "out", local_files_only=True, output_loading_info=True
    )
    assert not loading_info["missing_keys"]
    assert not loading_info["unexpected_keys"]
    pixels = torch.randn(2, backbone.preprocessing.channels, 48, 48)
    cls, patches = expected(backbone, pixels)
    with torch.no_grad():
        tokens = theirs.eval()(pixels).last_hidden_state
    first = 1 + backbone.vit.config.num_registers
    assert (tokens[:, 0] - cls).abs().max() < 1e-5
    assert (tokens[:, first:] - patches).abs().max() < 1e-5
    again = load_backbone(tmp_path / "out")
    assert again.preprocessing == backbone.preprocessing
    assert (expected(again, pixels)[0] - cls).abs().max() < 1e-5
    # names on disk are those of save_pretrained
    theirs.save_pretrained(tmp_path / "saved")
    from safetensors import safe_open

    with (
        safe_open(tmp_path / "out" / "model.safetensors", "pt") as ours,
        safe_open(tmp_path / "saved" / "model.safetensors", "pt") as saved,
    ):
        assert set(ours.keys()) == set(saved.keys())


def test_an_mlp_ratio_that_transformers_does_not_support_is_refused(tmp_path: Path) -> None:
    config = ViTConfig(embed_dim=24, depth=1, num_heads=2, patch_size=8, image_size=32, mlp_ratio=2.5)
    backbone = FrozenBackbone(VisionTransformer(config), Preprocessing(image_size=32), "odd")
    with pytest.raises(UsageError, match="integer MLP ratio"):
        export(ExportSource(backbone), "transformers", tmp_path / "out")
    assert not any((tmp_path / "out").glob("*.safetensors"))
    assert export(ExportSource(backbone), "timm", tmp_path / "out")["parity"]["largest_difference"] < 1e-5


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, lesion_manifest: Path, tiny_backbone: Path) -> Path:
    """A folder with the adapters `cls` and `seg`, made in a few steps."""
    folder = tmp_path_factory.mktemp("adapters")
    backbone, manifest = load_backbone(tiny_backbone), read_manifest(lesion_manifest)
    cache_option = {"cache": folder / "cache"}
    fit_head(backbone, manifest, folder / "cls", config=ClassifyConfig(), **cache_option)
    short = SegmentConfig.model_validate({"fit": {"epochs": 1, "min_steps": 0, "batch_size": 16}, "image_size": 32})
    fit_head(backbone, manifest, folder / "seg", config=short, **cache_option)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dynamic"),
    [
        pytest.param("plain", False, marks=pytest.mark.long),
        ("plain", True),
        pytest.param("stem", True, marks=pytest.mark.long),
    ],
)
def test_onnx_of_a_backbone(kind: str, dynamic: bool, tmp_path: Path) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    backbone = make(kind)
    report = export(ExportSource(backbone), "onnx", tmp_path / "out", dynamic_size=dynamic)
    assert report["parity"]["largest_difference"] < 1e-5
    session = runtime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    for shape in [(1, 48, 48), (5, 48, 48), *([(2, 32, 32), (1, 24, 80)] if dynamic else [])]:
        pixels = torch.randn(shape[0], 3, *shape[1:])
        cls, patches = session.run(None, {"pixels": pixels.numpy()})
        targets = compute_features(backbone, pixels, (-1,), True)
        assert np.abs(cls - targets.cls.numpy()).max() < 5e-5  # float32, sums in another order
        assert np.abs(patches - targets.patches.numpy()).max() < 5e-5
    facts = {entry.key: entry.value for entry in onnx.load(tmp_path / "out" / "model.onnx").metadata_props}
    assert json.loads(facts["preprocessing"]) == backbone.preprocessing.model_dump(mode="json")
    assert json.loads(facts["backbone"])["fingerprint"] == backbone.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cls", pytest.param("seg", marks=pytest.mark.long)])
def test_onnx_of_an_adapter_predicts_as_the_adapter(
    name: str, adapters: Path, lesion_manifest: Path, tmp_path: Path
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    source = load_source(str(adapters / name))
    export(source, "onnx", tmp_path / "out")
    session = runtime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    predictor = load_adapter(adapters / name)
    image = read_image(read_manifest(lesion_manifest).path(3))
    (features,) = session.run(None, {"pixels": predictor.backbone.preprocessing(image)[None].numpy()})
    if name == "cls":
        targets = np.array(list(predictor.probabilities(image).values()))
        assert np.abs(features[0] - targets).max() < 1e-5
    else:
        assert features.shape == (1, 1, 32, 32)
        square = np.asarray(predictor.probability(np.repeat(image[:32, :32, :1], 3, axis=2)))  # of the same size
        pixels = predictor.backbone.preprocessing(np.repeat(image[:32, :32, :1], 3, axis=2))[None].numpy()
        assert np.abs(session.run(None, {"pixels": pixels})[0][0, 0] - square).max() < 1e-5


def test_an_export_with_other_values_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    backbone = make("plain")
    state = backbone.vit.state_dict()
    assert export(ExportSource(backbone), "timm", tmp_path / "good")["parity"]["largest_difference"] < 1e-5
    from dinomed.adapters.export import libraries

    def shifted(frozen: FrozenBackbone) -> dict[str, torch.Tensor]:
        return {name: value + 0.01 * (name == "norm.bias") for name, value in state.items()}

    monkeypatch.setattr(libraries, "_at_own_size", shifted)
    with pytest.raises((DinomedError, RuntimeError)):
        export(ExportSource(make("plain", image_size=32)), "timm", tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_difference_is_nan_for_nan_and_for_other_shapes() -> None:
    reference = [torch.ones(2)]
    assert parity.difference(reference, [torch.full((2,), 1.5)]) == pytest.approx(1 / 3)
    for outputs in ([torch.full((2,), torch.nan)], [torch.ones(3)], []):
        assert not parity.difference(reference, outputs) <= parity.TOLERANCE


@pytest.mark.parametrize("name", ["cls", "seg"])
def test_safetensors_of_an_adapter_is_complete_by_itself(
    name: str, adapters: Path, lesion_manifest: Path, tmp_path: Path
) -> None:
    export(load_source(str(adapters / name)), "safetensors", tmp_path / "out")
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    image = read_image(read_manifest(lesion_manifest).path(0))
    ours, theirs = load_adapter(adapters / name), load_adapter(moved)
    if name == "cls":
        assert ours.probabilities(image) == theirs.probabilities(image)
    else:
        assert np.array_equal(ours.probability(image), theirs.probability(image))
    manifest = read_manifest(lesion_manifest)
    text = "".join(
        path.read_text() for path in moved.rglob("*") if path.suffix in (".json", ".md") or path.name == "NOTICE"
    )
    assert manifest.column("image")[0] not in text
    assert manifest.column("group")[0] not in text
    assert str(lesion_manifest.parent) not in text


def test_an_earlier_export_is_replaced_and_nothing_else(tmp_path: Path, tiny_backbone: Path) -> None:
    source, out = load_source(str(tiny_backbone)), tmp_path / "out"
    export(source, "monai", out)
    (out / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="add `overwrite=True`"):
        export(source, "safetensors", out)
    export(source, "safetensors", out, overwrite=True)
    assert sorted(path.name for path in out.iterdir() if path.name != ".lock") == [
        "NOTICE", "README.md", "config.json", "export.json", "mine.txt", "model.safetensors",
    ]  # fmt: skip
    report = json.loads((out / "export.json").read_text())
    report["files"]["../mine.txt"] = report["files"]["mine.txt"] = "0"
    (tmp_path / "mine.txt").write_text("keep")
    (out / "export.json").write_text(json.dumps(report))
    export(source, "safetensors", out, overwrite=True)
    assert (tmp_path / "mine.txt").exists()  # a hostile list reaches no file outside


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{b}", "-f", "onx"], "did you mean 'onnx'"),
        (["{b}", "-f", "timm", "--dynamic-size"], "--dynamic-size is for --format onnx"),
        (["{a}/cls", "-f", "timm"], "holds only a backbone"),
        (["{a}/cls", "-f", "onnx", "--image-size", "64"], "is an adapter with a fixed backbone and image size"),
        (["{b}", "-f", "onnx", "--backbone", "x"], "is not an adapter"),
        (["{a}/none", "-f", "onnx"], "no known name and no existing path"),
        (["{b}", "-f", "timm", "--image-size", "60"], "nearest: 56 or 64"),
    ],
)
def test_a_wrong_request_gives_a_one_line_error(
    arguments: list[str], message: str, adapters: Path, tiny_backbone: Path, tmp_path: Path, run
) -> None:
    command_arguments = [
        argument.replace("{a}", str(adapters)).replace("{b}", str(tiny_backbone)) for argument in arguments
    ]
    code, out, err = run("export", *command_arguments, "-o", tmp_path / "out")
    assert code == 2
    assert message in err
    assert err.count("error:") == 1
    assert out == ""
    assert not list(tmp_path.glob("out/*"))
