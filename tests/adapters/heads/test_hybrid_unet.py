"""The U-Net on the image that reads frozen features: principal directions, sizes, channels, tokens left out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.bundle import read_record
from dinomed.adapters.evaluation.few_masks import DrawnFit, few_shot_config, few_shot_masks
from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting.build import build_adapter
from dinomed.adapters.heads import hybrid_unet
from dinomed.adapters.heads.hybrid_unet import principal_directions
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import Manifest
from dinomed.features.compute import Features, compute_features
from dinomed.images.read import read_image


def config_of(**settings: Any) -> SegmentConfig:
    head = {"name": "hybrid_unet", **settings.pop("head", {})}
    return SegmentConfig.model_validate({"head": head, **settings})


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> FrozenBackbone:
    return load_backbone(tiny_backbone)


def features_of(backbone: FrozenBackbone, head: Adapter, rows: int, columns: int, count: int = 2) -> Features:
    images = torch.randn(count, 3, 8 * rows, 8 * columns, generator=torch.Generator().manual_seed(0))
    return compute_features(backbone, images, head.feature_spec.blocks, patches=True)


def calibrated(backbone: FrozenBackbone, **head: Any) -> Any:
    adapter = build_adapter(config_of(head=head), backbone, num_classes=1)
    patches = features_of(backbone, adapter, 8, 8, 6).patches
    assert patches is not None
    adapter.calibrate_patches(list(patches.numpy()))
    return adapter


def test_principal_directions_are_those_of_scikit_learn() -> None:
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12)) + 3
    ours = principal_directions(torch.from_numpy(tokens).float().split(70), 5)
    reference = PCA(5, whiten=True).fit(tokens)
    assert ours.shape == (5, 12)
    expected = np.abs(reference.transform(tokens))
    seen = np.abs((tokens - tokens.mean(axis=0)) @ ours.numpy().T)
    # scikit-learn divides by N - 1, here by N: a factor of 1.0017; the rest is float32
    assert np.allclose(seen, expected, rtol=5e-3, atol=2e-3)
    assert all(row[row.abs().argmax()] > 0 for row in ours)


def test_the_first_directions_of_many_channels_are_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.randn(200, 40, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 1, 40)
    dense = principal_directions([tokens], 6)
    monkeypatch.setattr(hybrid_unet, "MOST_DENSE", 8)
    lanczos = principal_directions([tokens], 6)
    assert torch.allclose(lanczos, dense, atol=1e-5)  # float32; both are computed in float64
    assert torch.equal(lanczos, principal_directions([tokens], 6))  # the start vector is fixed


def test_every_weight_has_a_gradient(backbone: FrozenBackbone) -> None:
    head = calibrated(backbone, token_dropout=0).train()
    head(features_of(backbone, head, 8, 8)).square().sum().backward()
    assert all(weight.grad is not None for weight in head.parameters())


def test_few_shot_draws_calibrate_the_head(
    backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    keep = DrawnFit.finish
    monkeypatch.setattr(
        DrawnFit, "finish",
        lambda fit, best: (seen.append(float(fit.adapter.directions.abs().sum())), keep(fit, best))[1],
    )  # fmt: skip
    fit = {"epochs": 1, "min_steps": 1, "batch_size": 4}
    config = few_shot_config({"head": {"name": "hybrid_unet"}, "image_size": 32, "fit": fit})
    few_shot_masks(backbone, manifest, config, cache=tmp_path / "cache", shots=[8], seeds=1)
    assert seen
    assert min(seen) > 0


def test_directions_without_variance_are_zero() -> None:
    flat = torch.zeros(20, 6)
    flat[:, 0] = torch.arange(20.0)
    directions = principal_directions([flat], 3)
    assert directions.isfinite().all()
    assert (directions[1:] == 0).all()
    assert directions[0, 0] > 0


@pytest.mark.parametrize("grid", [(15, 18), (16, 16), (9, 7)])
def test_any_size_gives_a_map_of_the_image(grid: tuple[int, int], backbone: FrozenBackbone) -> None:
    head = calibrated(backbone).eval()
    with torch.no_grad():
        logits = head(features_of(backbone, head, *grid))
    assert logits.shape == (2, 1, 8 * grid[0], 8 * grid[1])


def test_the_map_depends_on_the_image_and_on_the_tokens(backbone: FrozenBackbone) -> None:
    head = calibrated(backbone).eval()
    features = features_of(backbone, head, 8, 8)
    assert features.images is not None
    assert features.patches is not None
    with torch.no_grad():
        first = head(features)
        other_image = head(Features(features.cls, features.mean, features.patches, features.images.flip(3)))
        other_tokens = head(Features(features.cls, features.mean, features.patches.flip(3), features.images))
        level = torch.randn(2, features.patches.shape[1], 1, 1, generator=torch.Generator().manual_seed(1))
        lighter = head(Features(features.cls, features.mean, features.patches + level, features.images))
    assert not torch.allclose(first, other_image, atol=1e-4)
    assert not torch.allclose(first, other_tokens, atol=1e-4)
    assert torch.allclose(first, lighter, atol=1e-3)  # a level that all patches of an image share is removed (float32)


def test_tokens_of_some_training_images_are_left_out_and_none_in_prediction(backbone: FrozenBackbone) -> None:
    head = calibrated(backbone, token_dropout=0.5)
    seen: list[torch.Tensor] = []
    head.join.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, -64:]))
    features = features_of(backbone, head, 8, 8, 64)
    for training in (True, False):
        head.train(training)
        with torch.no_grad():
            head(features)
    empty = [(part.flatten(1) == 0).all(dim=1).sum().item() for part in seen]
    assert 12 <= empty[0] <= 52  # 64 images, each with probability 1/2: outside with a probability below 1e-6
    assert empty[1] == 0


def test_few_channels_limit_the_directions_and_other_channels_of_images_work(backbone: FrozenBackbone) -> None:
    head: Any = build_adapter(config_of(head={"directions": 256, "blocks": [0]}), backbone, num_classes=3)
    assert head.directions.shape == (backbone.embed_dim, backbone.embed_dim)
    gray = type(head)(head.config.model_copy(update={"image_channels": 1}), backbone.embed_dim, 3).eval()
    patches = torch.randn(2, backbone.embed_dim, 8, 8)
    features = Features(torch.zeros(2, 1), torch.zeros(2, 1), patches, torch.randn(2, 1, 64, 64))
    assert gray(features).shape == (2, 3, 64, 64)


@pytest.mark.parametrize(("amx", "precision"), [(False, "float32"), (True, "bfloat16")])
def test_a_fit_calibrates_the_head_and_its_bundle_predicts_the_same(
    amx: bool, precision: str, backbone: FrozenBackbone, manifest: Manifest, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also in the precision of a processor with AMX, whichever this one has."""
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    seen = set[torch.dtype]()
    forward = hybrid_unet.HybridUNet.forward

    def watch(self: Any, features: Features) -> torch.Tensor:
        logits = forward(self, features)
        if self.training:
            seen.add(logits.dtype)
        return logits

    monkeypatch.setattr(hybrid_unet.HybridUNet, "forward", watch)
    fit = {"epochs": 1, "min_steps": 0, "batch_size": 8, "refit": "never"}
    config = config_of(image_size=32, augment="light", fit=fit)
    result = fit_head(backbone, manifest, tmp_path / "seg", config, cache=tmp_path / "cache")
    predictor: Any = load_adapter(result.folder)
    assert predictor.adapter.directions.abs().sum() > 0
    record = read_record(result.folder)
    assert record.training["config"]["fit"]["average"] == 0.98
    assert record.training["config"]["fit"]["precision"] == precision
    assert seen == {getattr(torch, precision)}
    image = read_image(manifest.path(0))
    assert predictor.probability(image).shape == image.shape[:2]
    assert (load_adapter(result.folder).probability(image) == predictor.probability(image)).all()  # type: ignore[attr-defined]
