"""Every head in every export format, compared with the predictions of `load_adapter`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dinomed.adapters.adapter import FeatureSpec
from dinomed.adapters.export.run import export
from dinomed.adapters.export.source import ExportSource, load_source
from dinomed.adapters.export.traceable import AnyPool, traceable
from dinomed.adapters.heads.decoders import DECODERS
from dinomed.adapters.inference.dense import DensePredictor
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.predictor import Predictor
from dinomed.adapters.tasks.classify.predict import ClassifyPredictor
from dinomed.backbones.load import load_backbone
from dinomed.errors import UsageError

Make = Callable[..., Path]
THREE = ("a", "b", "c")
CLASSIFIERS: list[Any] = [
    *((head, {"classes": THREE}) for head in ("linear", "knn", "logistic", "grid", "attentive")),
    *((head, {"classes": THREE, "usage": {"multilabel": True}}) for head in ("knn", "logistic")),
]
SMALL_ENOUGH = [name for name in DECODERS if name != "pan"]  # PAN halves 8 patches until nothing is left
DENSE: list[Any] = [
    *(("segment", head, {}) for head in ("linear", "multiscale", "dpt", "dino_unet", "hybrid_unet", *SMALL_ENOUGH)),
    ("segment", "linear", {"classes": THREE, "kind": "multiclass"}),
    ("segment", "dpt", {"classes": THREE, "kind": "multilabel"}),
    *(("depth", head, {}) for head in ("linear", "linear4", "dpt")),
]
ALL: list[Any] = [*(("classify", head, options) for head, options in CLASSIFIERS), *DENSE]
ALL += [("classify", "linear", {"classes": THREE, "tune": "lora:2"}), ("segment", "linear", {"tune": "last:1"})]
# float32 sums in another order, magnified by BatchNorm over random channels that hardly vary: up to 4e-4 was seen;
# another computation, such as positions or pooling that are off by a pixel, gives 1e-2. A random MAnet or Linknet
# magnifies more: the limit is then three times the rounding of dinomed's own computation, measured against float64
# (its double was seen between the two)
CLOSE, ROUNDINGS = 1e-3, 3


def picture(predictor: Predictor, height: int, width: int) -> np.ndarray:
    """Noise and a bright square, uint8: of the backbone's own size, so that nothing is resized on the way."""
    image = np.random.default_rng(5).integers(0, 160, (height, width, predictor.backbone.preprocessing.channels))
    image[height // 4 : height // 2, width // 4 : width // 2] += 90
    return image.astype(np.uint8)


def predicted(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    """What a user of `load_adapter` gets."""
    if isinstance(predictor, ClassifyPredictor):
        return np.array(list(predictor.probabilities(image).values()))
    return predictor.maps(image)


def check(
    outputs: np.ndarray, targets: np.ndarray, source: ExportSource | None = None, pixels: torch.Tensor | None = None
) -> None:
    """Compare; with a `source`, the limit allows for the rounding of its computation."""
    scale = max(1.0, float(np.abs(targets).max()))  # depths go up to 9
    assert outputs.shape == targets.shape
    assert np.ptp(targets) > 0.01  # a constant answer would compare equal whatever was exported
    error, limit = float(np.abs(outputs - targets).max()), CLOSE * scale
    if error >= limit and source is not None and pixels is not None:
        exact = source.doubled().reference(pixels.double())[0]
        limit = ROUNDINGS * float((source.reference(pixels)[0] - exact).abs().max())
    assert error < min(limit, 1e-2 * scale)


@pytest.mark.parametrize(("task", "head", "options"), ALL)
def test_the_graph_predicts_as_the_adapter_at_every_size(
    task: str, head: str, options: dict[str, Any], make_adapter: Make
) -> None:
    """The graph that is written as ONNX, still in torch."""
    folder = make_adapter(task, head, **options)
    source, predictor = load_source(str(folder)), load_adapter(folder)
    fixed, free = source.graph(64), source.graph(None)
    image = picture(predictor, 64, 64)
    pixels = predictor.backbone.preprocessing(image)[None]
    with torch.no_grad():
        check(fixed(pixels)[0].numpy(), predicted(predictor, image), source, pixels)
        check(free(pixels)[0].numpy(), predicted(predictor, image), source, pixels)
        pixels = torch.randn(2, 3, 72, 104, generator=torch.Generator().manual_seed(2))
        check(free(pixels).numpy(), source.reference(pixels)[0].numpy(), source, pixels)


def onnx_check(folder: Path, out: Path, *, dynamic_size: bool) -> dict[str, Any]:
    """Export, then ask ONNX Runtime of a picture; returns the report."""
    runtime = pytest.importorskip("onnxruntime")
    report = export(load_source(str(folder)), "onnx", out, dynamic_size=dynamic_size)
    session = runtime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    source, predictor = load_source(str(folder)), load_adapter(folder)
    image = picture(predictor, 64, 64)
    pixels = predictor.backbone.preprocessing(image)[None]
    for count in (1, 3):
        (outputs,) = session.run(None, {"pixels": np.repeat(pixels.numpy(), count, axis=0)})
        assert len(outputs) == count
        check(outputs[-1], predicted(predictor, image), source, pixels)
    if dynamic_size:
        pixels = torch.randn(2, 3, 80, 112, generator=torch.Generator().manual_seed(2))
        (outputs,) = session.run(None, {"pixels": pixels.numpy()})
        check(outputs, source.reference(pixels)[0].numpy(), source, pixels)
    return report


@pytest.mark.long
@pytest.mark.parametrize("head", ["unet", "fpn", "deeplabv3plus", "upernet", "segformer"])
def test_onnx_of_an_smp_decoder_takes_any_batch_and_size(head: str, make_adapter: Make, tmp_path: Path) -> None:
    onnx_check(make_adapter("segment", head), tmp_path / "out", dynamic_size=True)


@pytest.mark.long
@pytest.mark.parametrize(
    ("task", "head", "options"),
    [
        ("segment", "dpt", {"classes": THREE, "kind": "multilabel"}),
        ("segment", "linear", {"classes": THREE, "kind": "multiclass"}),
        ("segment", "multiscale", {}),
        ("segment", "dino_unet", {}),
        ("segment", "hybrid_unet", {}),
        ("depth", "linear", {}),
        ("depth", "linear4", {}),
        ("depth", "dpt", {}),
    ],
)
def test_onnx_of_other_dense_heads_takes_any_batch_and_size(
    task: str, head: str, options: dict[str, Any], make_adapter: Make, tmp_path: Path
) -> None:
    onnx_check(make_adapter(task, head, **options), tmp_path / "out", dynamic_size=True)


@pytest.mark.long
@pytest.mark.parametrize(("head", "options"), CLASSIFIERS)
def test_onnx_of_a_classifier_is_calibrated_and_names_its_thresholds(
    head: str, options: dict[str, Any], make_adapter: Make, tmp_path: Path
) -> None:
    report = onnx_check(make_adapter("classify", head, **options), tmp_path / "out", dynamic_size=False)
    usage = report["source"]["usage"]
    assert usage["temperature"] == 1.7
    assert usage["thresholds"] == [0.3] * 3
    card = (tmp_path / "out" / "README.md").read_text()
    assert "temperature 1.7000 (applied already)" in card
    assert "a 0.3000, b 0.3000, c 0.3000" in card
    assert ("a sigmoid for each label" in card) == ("usage" in options)


@pytest.mark.long
@pytest.mark.parametrize("tune", ["lora:2", "last:1"])
def test_onnx_holds_the_weights_of_a_tuned_backbone(tune: str, make_adapter: Make, tmp_path: Path) -> None:
    folder = make_adapter("classify", "linear", classes=THREE, tune=tune)
    report = onnx_check(folder, tmp_path / "out", dynamic_size=False)
    record = load_adapter(folder).metadata
    assert report["source"]["backbone"]["fingerprint"] == record["tuned"]["fingerprint"]
    assert record["tuned"]["fingerprint"] != record["backbone"]["fingerprint"]
    assert f"was tuned with the head ({tune})" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("task", "head", "options"),
    [
        ("classify", "knn", {"classes": THREE}),
        pytest.param("segment", "unet", {}, marks=pytest.mark.long),
        pytest.param("depth", "dpt", {}, marks=pytest.mark.long),
        ("classify", "linear", {"classes": THREE, "tune": "lora:2"}),
        ("segment", "linear", {"tune": "last:1"}),
    ],
)
def test_safetensors_and_torchscript_predict_the_same(
    task: str, head: str, options: dict[str, Any], make_adapter: Make, tmp_path: Path
) -> None:
    folder = make_adapter(task, head, **options)
    for kind in ("safetensors", "monai"):
        export(load_source(str(folder)), kind, tmp_path / kind)
    moved = (tmp_path / "safetensors").rename(tmp_path / "elsewhere")
    ours, theirs = load_adapter(folder), load_adapter(moved)
    image = picture(ours, 64, 64)
    assert np.array_equal(predicted(ours, image), predicted(theirs, image))
    assert theirs.backbone.fingerprint == ours.backbone.fingerprint
    network = torch.jit.load(str(tmp_path / "monai" / "models" / "model.ts"))
    with torch.no_grad():
        outputs = network(ours.backbone.preprocessing(image)[None])  # logits of dense heads: the bundle resizes them
        dense = isinstance(ours, DensePredictor)
        check(ours.resized(outputs, (64, 64)) if dense else outputs[0].numpy(), predicted(ours, image))


def test_timm_and_transformers_get_the_tuned_backbone(make_adapter: Make, tmp_path: Path) -> None:
    timm, transformers = pytest.importorskip("timm"), pytest.importorskip("transformers")
    folder = make_adapter("classify", "linear", classes=THREE, tune="lora:2")
    predictor = load_adapter(folder)
    assert isinstance(predictor, ClassifyPredictor)
    for kind in ("timm", "transformers"):
        export(load_source(str(folder)), kind, tmp_path / kind)
    image = picture(predictor, 64, 64)
    pixels = predictor.backbone.preprocessing(image)[None]
    with torch.no_grad():
        theirs = [
            timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()(pixels),
            transformers.AutoModel.from_pretrained(tmp_path / "transformers").eval()(pixels).last_hidden_state[:, 0],
        ]
        head: Any = predictor.adapter
        for cls in theirs:  # the head on their features predicts what ours does
            logits = head.linear((cls - head.shift) * head.scale)
            check(predictor.answer.probabilities(logits)[0].numpy(), predicted(predictor, image))


def test_adaptive_pooling_equals_torch_at_every_size() -> None:
    from torch.nn.functional import adaptive_avg_pool2d

    x = torch.randn(2, 3, 13, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for rows, columns in ((1, 2), (3, 3), (6, 6), (13, 7), (17, 9)):
        targets = adaptive_avg_pool2d(x, (rows, columns))
        assert (AnyPool(rows, columns)(x) - targets).abs().max() < 1e-12


def test_the_traceable_copy_does_not_change_the_head(make_adapter: Make) -> None:
    predictor = load_adapter(make_adapter("segment", "upernet"))
    before = [type(part) for part in predictor.adapter.modules()]
    copy = traceable(predictor.adapter, any_size=True)
    assert any(isinstance(part, AnyPool) for part in copy.modules())
    assert [type(part) for part in predictor.adapter.modules()] == before
    assert copy.feature_spec == FeatureSpec(predictor.adapter.feature_spec.blocks, patches=True)


def test_an_adapter_on_a_bare_file_of_weights_is_exported_with_its_backbone(
    small_backbone: Callable[..., Path], make_adapter: Make, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(load_backbone(small_backbone()).vit.state_dict(), weights)
    folder = make_adapter("classify", "linear", classes=THREE, backbone=weights)
    export(load_source(str(folder)), "safetensors", tmp_path / "out")
    assert load_adapter(tmp_path / "out").backbone.fingerprint == load_adapter(folder).backbone.fingerprint


def test_four_channels_and_sixteen_bits(
    small_backbone: Callable[..., Path], make_adapter: Make, tmp_path: Path
) -> None:
    from dinomed.images.intensity import IntensityConfig

    four = small_backbone(channels=4)
    window = small_backbone(intensity=IntensityConfig(bits=16, window=(-1350, 150)))
    for backbone, reason in ((four, "takes 4 channels"), (window, "'window': [-1350.0, 150.0]")):
        folder = make_adapter("classify", "linear", classes=THREE, backbone=backbone)
        with pytest.raises(UsageError, match="use onnx or safetensors") as refusal:
            export(load_source(str(folder)), "monai", tmp_path / "refused")
        assert reason in str(refusal.value)
        assert not (tmp_path / "refused").exists()
        out = tmp_path / reason[-4:].strip("]. ")
        export(load_source(str(folder)), "safetensors", out / "own")
        ours, theirs = load_adapter(folder), load_adapter(out / "own")
        image = picture(ours, 64, 64)
        assert np.array_equal(predicted(ours, image), predicted(theirs, image))
        for kind in ("timm", "transformers"):
            report = export(load_source(str(backbone)), kind, out / kind)
            assert report["parity"]["largest_difference"] < 1e-5
    assert "16 bits; -1350 becomes 0 and 150 becomes 1" in (out / "timm" / "README.md").read_text()
