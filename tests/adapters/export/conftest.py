"""Bundles of every head without a fit, whose predictions differ between images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.bundle import open_output, save_bundle
from dinomed.adapters.fitting.build import build_adapter
from dinomed.adapters.fitting.config import BackboneTuneConfig
from dinomed.adapters.fitting.tune import LearningBackbone
from dinomed.adapters.heads.decoders import DECODERS
from dinomed.adapters.heads.solved.solve import Examples, SolvedClassifier
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
