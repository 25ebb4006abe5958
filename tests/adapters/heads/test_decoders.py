"""DPT and every decoder of SMP on frozen features: shapes, gradients, bundles, and that training helps."""

import json
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch

from dinomed.adapters.bundle import load_head, open_output, read_record, save_bundle
from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting.build import build_adapter
from dinomed.adapters.fitting.config import FitConfig
from dinomed.adapters.heads.decoders import DECODERS, DecoderConfig
from dinomed.adapters.heads.dpt import DPT, DPTConfig, quarter_blocks
from dinomed.adapters.heads.smp_encoder import register_encoder
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.losses import build_loss
from dinomed.adapters.training_images import TrainingHashes
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import read_manifest
from dinomed.errors import UsageError
from dinomed.features.compute import Features, compute_features

HEADS = ["linear", "multiscale", "dpt", "dino_unet", "hybrid_unet", *DECODERS]
SMALL = {"channels": (8, 8, 8, 16, 16)}


def config_of(name: str, **settings: object) -> SegmentConfig:
    head: dict[str, object] = {"name": name}
    if name in DECODERS:
        head |= SMALL
    elif name == "dpt":
        head["channels"] = 16
    elif name == "multiscale":
        head["blocks"] = [0, 1, 2]
    return SegmentConfig.model_validate({"head": head, **settings})


@pytest.mark.parametrize("name", HEADS)
def test_a_step_trains_only_the_head_and_the_bundle_predicts_the_same(
    name: str, tiny_backbone: Path, tmp_path: Path
) -> None:
    backbone = load_backbone(tiny_backbone)
    head = build_adapter(config_of(name), backbone, num_classes=2).train()
    rows, columns = (15, 18) if name == "pan" else (5, 6)  # odd and even; PAN halves its coarsest level three times
    images = torch.randn(2, 3, 8 * rows, 8 * columns, generator=torch.Generator().manual_seed(0))
    backbone.vit.requires_grad_(True)  # so that a gradient would show
    features = compute_features(backbone, images, head.feature_spec.blocks, patches=True)
    logits = head(features)
    height, width = logits.shape[-2:]
    assert logits.shape[:2] == (2, 2)
    assert height * columns == width * rows  # the grid's shape, however fine
    targets = (torch.rand(2, 2, height, width, generator=torch.Generator().manual_seed(1)) > 0.5).to(torch.uint8)
    before = {key: value.detach().clone() for key, value in head.named_parameters()}
    loss = build_loss("dice_ce", exclusive=False)(logits, targets)
    loss.backward()
    assert all(p.grad is None for p in backbone.parameters())
    assert not any(key.startswith("vit") or "backbone" in key for key in head.state_dict())
    torch.optim.SGD(head.parameters(), lr=1.0).step()
    assert any((value != before[key]).any() for key, value in head.named_parameters())
    backbone.vit.requires_grad_(False)
    head.eval()
    with torch.no_grad():
        expected = head(features)
    with open_output(tmp_path / "seg", config_of(name), overwrite=False) as output:
        save_bundle(
            output,
            head,
            backbone,
            classes=["a", "b"],
            seen=TrainingHashes(frozenset(), frozenset()),
            validation={},
            training={},
        )
    loaded = load_head(tmp_path / "seg", read_record(tmp_path / "seg"))
    with torch.no_grad():
        assert (loaded(features) == expected).all()


@pytest.mark.parametrize("name", ["dpt", "unet", "segformer"])
def test_training_on_cached_features_lowers_the_loss(
    name: str, tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path
) -> None:
    fit = FitConfig(epochs=4, patience=4, batch_size=8, learning_rate=3e-3, min_steps=0)
    config = config_of(name, fit=fit, image_size=32)
    manifest = read_manifest(lesion_manifest)
    folder = fit_head(load_backbone(tiny_backbone), manifest, tmp_path / "seg", config, cache=tmp_path / "cache").folder
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert log[-1]["train_loss"] < 0.9 * log[0]["train_loss"]


def test_smp_builds_models_on_the_frozen_vit_and_images_give_what_features_give(tiny_backbone: Path) -> None:
    backbone = load_backbone(tiny_backbone)
    register_encoder("dinomed-test", backbone, blocks=(0, 1, 2, 2), stride=8, channels=SMALL["channels"])
    model = smp.Unet("dinomed-test", encoder_weights=None, classes=3).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        levels = model.encoder(images)
        assert [tuple(level.shape[-2:]) for level in levels] == [(64 // 2**k, 96 // 2**k) for k in range(6)]
        features = compute_features(backbone, images, (0, 1, 2, 2), patches=True)
        for level, encoded in zip(levels[1:], model.encoder(features)[1:], strict=True):
            assert (level == encoded).all()
        assert model(images).shape == (2, 3, 64, 96)
    model.train()
    assert not backbone.vit.training
    model(images).sum().backward()
    assert all(p.grad is None for p in backbone.parameters())


def test_dpt_has_the_shapes_of_the_paper() -> None:
    dpt = DPT(embed_dim=64, channels=32)
    assert [layer.out_channels for layer in dpt.projects] == [8, 16, 32, 64]
    grids = [Features(torch.randn(1, 64), torch.randn(1, 64), torch.randn(1, 64, 6, 5)) for _ in range(4)]
    assert dpt(grids).shape == (1, 32, 48, 40)
    first = dpt(grids)
    changed = [Features(grids[0].cls + 1, grids[0].mean, grids[0].patches), *grids[1:]]
    assert (dpt(changed) - first).abs().max() > 1e-6  # the class token is read
    assert quarter_blocks(24) == (4, 11, 17, 23)
    assert quarter_blocks(3) == (0, 1, 2, 2)


def test_options_reach_smp_and_unknown_ones_are_named() -> None:
    with pytest.raises(ValueError, match="'decoder_chanels' is not an option of unet"):
        DecoderConfig(name="unet", options={"decoder_chanels": 3})
    with pytest.raises(ValueError, match="no head 'unett'; did you mean 'unet'"):
        SegmentConfig.model_validate({"head": {"name": "unett"}})
    assert DPTConfig().channels == 256


def test_a_grid_too_small_for_a_decoder_is_reported(tiny_backbone: Path) -> None:
    head = build_adapter(config_of("pan"), load_backbone(tiny_backbone), num_classes=1)
    grid = Features(torch.randn(2, 128), torch.randn(2, 128), torch.randn(2, 128, 4, 4))
    with pytest.raises(UsageError, match=r"pan reduces 4x4 patches.*larger image_size"):
        head(grid)
