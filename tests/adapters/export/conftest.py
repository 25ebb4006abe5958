"""Bundles of every head without a fit, whose predictions differ between images; MONAI bundles are run and compared."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.bundle import open_output, save_bundle
from dinomed.adapters.fitting.build import build_adapter
from dinomed.adapters.fitting.config import BackboneTuneConfig
from dinomed.adapters.fitting.tune import LearningBackbone
from dinomed.adapters.heads.decoders import DECODERS
from dinomed.adapters.heads.solved.solve import Examples, SolvedClassifier
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.depth.config import DepthConfig
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.training_images import TrainingHashes
from dinomed.backbones.config import ViTConfig
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone, save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.features.compute import compute_features
from dinomed.images.read import read_image

Rows = dict[str, dict[str, str]]
NEAR = 1e-4
"""Probabilities closer than this to a decision may be decided either way: TorchScript and dinomed sum float32 in other
orders, as in `dinomed.adapters.export.parity`."""
SIZE = 64  # px, 8 patches a side: the smallest at which the decoders halve something
CONFIGS = {"classify": ClassifyConfig, "segment": SegmentConfig, "depth": DepthConfig}
_FIVE = {"decoder_channels": [32, 16, 16, 8, 8]}
HEADS: dict[str, dict[str, Any]] = {
    "grid": {"steps": 300, "learning_rates": [0.1, 1.0], "blocks": [-2, -1]},
    "logistic": {"cs": [0.01]},  # labels are drawn by lot; a weak penalty gives weights that magnify rounding
    "dpt": {"channels": 32},
    **{name: {"channels": [8, 8, 16, 16, 16]} for name in DECODERS},
}
for _name, _options in (
    ("unet", _FIVE), ("unetplusplus", _FIVE), ("manet", _FIVE), ("upernet", {"decoder_channels": 32}),
    ("deeplabv3", {"decoder_channels": 32}), ("deeplabv3plus", {"decoder_channels": 32}),
):  # fmt: skip
    HEADS[_name]["options"] = _options
"""Settings that make the heads small."""


@pytest.fixture(scope="session")
def small_backbone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with a random ViT in which every weight counts: 32 channels, 4 blocks, patch 8."""

    def make(channels: int = 3, **reading: Any) -> Path:
        folder = tmp_path_factory.mktemp("backbones") / "small"
        config = ViTConfig(
            embed_dim=32, depth=4, num_heads=2, patch_size=8, image_size=32, layerscale=None, in_channels=channels
        )
        generator, vit = torch.Generator().manual_seed(0), VisionTransformer(config)
        for parameter in vit.parameters():
            scale = 1.0 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.data.copy_(0.3 + scale * torch.randn(parameter.shape, generator=generator))
        numbers = {"mean": (0.4,) * channels, "std": (0.2,) * channels, "channels": channels}
        save_backbone(folder, vit, Preprocessing(image_size=SIZE, **numbers, **reading))
        return folder

    return make


@pytest.fixture
def make_adapter(tmp_path: Path, small_backbone: Callable[..., Path]) -> Callable[..., Path]:
    """The folder of an adapter of a task and head; `kind` of masks; `usage` on top of the usual; `tune` as in
    `--tune`, with the weights moved."""

    def make(
        task: str, head: str, *, classes: tuple[str, ...] = ("lesion",), kind: str = "binary", tune: str | None = None,
        usage: dict[str, Any] | None = None, backbone: Path | None = None,
    ) -> Path:  # fmt: skip
        base = load_backbone(backbone or small_backbone())
        options: dict[str, Any] = {"head": {"name": head, **HEADS.get(head, {})}}
        if task == "depth":
            options["head"] |= {"low": 1.0, "high": 9.0}
        config = CONFIGS[task].model_validate(options)
        adapter, tuned = build_adapter(config, base, len(classes)), None
        if tune is not None:
            settings = BackboneTuneConfig.model_validate(tune)
            learning = LearningBackbone(base, settings, [b % base.depth for b in adapter.feature_spec.blocks], seed=0)
            generator = torch.Generator().manual_seed(3)
            for parameter in (weight for weight in learning.vit.parameters() if weight.requires_grad):
                parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
            tuned = learning.freeze()
        adapter = _settled(adapter, base if tuned is None else tuned.backbone, bool((usage or {}).get("multilabel")))
        folder = tmp_path / f"{task}_{head}_{kind}_{tune}"
        with open_output(folder, config, overwrite=True) as output:
            (output.stage / "log.jsonl").write_text("")
            save_bundle(
                output, adapter, base, classes=list(classes), seen=TrainingHashes(frozenset(), frozenset()),
                validation={},
                threshold=0.4 if (task, kind) == ("segment", "binary") else None,
                usage=_usage(task, kind, classes) | (usage or {}), training={}, tuned=tuned,
            )  # fmt: skip
        return folder

    return make


def _settled(adapter: Adapter, backbone: FrozenBackbone, multilabel: bool) -> Adapter:
    """Solved on random images, or with the means and deviations of BatchNorm that belong to them."""
    needs, generator = adapter.feature_spec, torch.Generator().manual_seed(1)
    features = compute_features(backbone, _images(backbone, 24, generator), needs.blocks, needs.patches)
    if adapter.calibrates_patches:
        assert features.patches is not None
        adapter.calibrate_patches(list(features.patches.numpy()))
    if isinstance(adapter, SolvedClassifier):
        draw = np.random.default_rng(0)
        count = adapter.num_classes
        targets = draw.integers(0, 2, (24, count)).astype(float) if multilabel else np.arange(24) % count
        seen = Examples(features.cls.numpy(), features.mean.numpy(), targets)
        return adapter.solve(seen, seen, None, 0).adapter.eval()
    adapter.train()
    for part in adapter.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None  # the plain mean over all batches: one is enough
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        adapter(features)
    return adapter.eval()


def _images(backbone: FrozenBackbone, count: int, generator: torch.Generator) -> torch.Tensor:
    """Colours with noise on them: of noise alone all class tokens are the same."""
    side, channels = backbone.preprocessing.image_size, backbone.preprocessing.channels
    colours = 1.5 * torch.randn(count, channels, 1, 1, generator=generator)
    return colours + torch.randn(count, channels, side, side, generator=generator)


def _usage(task: str, kind: str, classes: tuple[str, ...]) -> dict[str, Any]:
    if task == "classify":
        return {"temperature": 1.7, "thresholds": [0.3] * len(classes)}
    views = {"flips": False, "scales": (1.0,), "window": None, "overlap": 0.25}
    if task == "depth":
        return {"depth": {"column": "depth", "scale": 1.0, "unit": "cm", "low": 1.0, "high": 9.0}, "views": views}
    codes = {"binary": [1], "multiclass": list(range(len(classes)))}.get(kind, [2**i for i in range(len(classes))])
    usage: dict[str, Any] = {"mask_schema": {"kind": kind, "names": list(classes), "codes": codes}, "views": views}
    return usage | ({"thresholds": [0.35, 0.6, 0.5][: len(classes)]} if kind == "multilabel" else {})


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def run_bundle() -> Callable[[Path, Path], dict[str, Any]]:
    """Run a bundle on a folder of images as ``python -m monai.bundle run`` does; return `predictions.json`."""
    from monai.bundle import run as run_monai

    def run_one(bundle: Path, images: Path) -> dict[str, Any]:
        file = str(bundle / "configs" / "inference.json")
        run_monai(config_file=file, bundle_root=str(bundle), dataset_dir=str(images))
        return dict(json.loads((bundle / "output" / "predictions.json").read_text()))

    return run_one


@pytest.fixture
def predicted_rows(run: Callable[..., tuple[int, str, str]]) -> Callable[[Path, Path, Path], Rows]:
    """Return the rows that `dinomed predict` writes for an adapter, by the path of the image in its folder."""

    def predict(adapter: Path, images: Path, out: Path) -> Rows:
        code, _, err = run("predict", adapter, images, "-o", out, "--names", "--quiet")
        assert code == 0, err
        with open(out / "predictions.csv", newline="") as file:
            return {row["image"]: row for row in csv.DictReader(file)}

    return predict


@pytest.fixture
def compare_masks(predicted_rows: Callable[[Path, Path, Path], Rows]) -> Callable[..., set[int]]:
    """Check that the masks of a bundle are those of `dinomed predict`; return their values."""

    def compare(entries: list[dict[str, str]], adapter: Path, images: Path, out: Path) -> set[int]:
        rows, predictor = predicted_rows(adapter, images, out), load_adapter(adapter)
        assert len(entries) == len(rows) == 6
        assert len({entry["file"] for entry in entries}) == 6  # same.png and same.jpg have a file each
        seen: set[int] = set()
        for entry in entries:
            name = str(Path(entry["image"]).relative_to(images))
            label = np.asarray(Image.open(entry["file"]))
            mask = np.asarray(Image.open(out / rows[name]["mask"]))
            assert label.shape == mask.shape
            assert label.dtype == mask.dtype
            clear = _decided_clearly(predictor, read_image(images / name))
            assert clear.mean() > 0.99
            assert np.array_equal(label[clear], mask[clear])
            seen |= set(np.unique(label).tolist())
        assert len(seen) > 1  # a mask of one value would be equal whatever was resized
        return seen

    return compare


def _decided_clearly(predictor: Any, image: np.ndarray) -> np.ndarray:
    """Return the pixels (H, W) whose decision rounding errors do not change."""
    values = predictor.probabilities(image)
    if predictor.exclusive:
        first, second = np.sort(values, axis=0)[::-1][:2]
        return np.asarray(first - second > NEAR)
    limits = np.array(predictor.thresholds)[:, None, None]
    return np.asarray((np.abs(values - limits) > NEAR).all(axis=0))
