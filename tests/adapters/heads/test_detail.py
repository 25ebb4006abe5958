"""The convolutional branch on the image: any size, gradients, details finer than a patch, bundles and exports."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from dinomed.adapters.export.graph import AdapterGraph
from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting.build import build_adapter
from dinomed.adapters.heads.decoders import DECODERS
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import read_manifest
from dinomed.features.compute import Features, compute_features

SMALL = (8, 8, 8, 16, 16)


def config_of(name: str, **settings: Any) -> SegmentConfig:
    head = {"name": name} | ({} if name == "dino_unet" else {"detail": True, "channels": SMALL})
    return SegmentConfig.model_validate({"head": head, **settings})


@pytest.mark.parametrize("name", ["dino_unet", *DECODERS])
def test_gradients_reach_the_branch_at_any_size(name: str, tiny_backbone: Path) -> None:
    backbone = load_backbone(tiny_backbone)
    head = build_adapter(config_of(name), backbone, num_classes=2).train()
    assert head.feature_spec.images
    for rows, columns in ((15, 18), (16, 16)):
        images = torch.randn(2, 3, 8 * rows, 8 * columns, generator=torch.Generator().manual_seed(0))
        logits = head(compute_features(backbone, images, head.feature_spec.blocks, patches=True))
        height, width = logits.shape[-2:]
        assert height * columns == width * rows
        head.zero_grad()
        logits.square().sum().backward()
        gradient = head.detail.stages[0][0].weight.grad
        assert gradient is not None
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", ["dino_unet", "unet", "deeplabv3plus"])
def test_a_level_that_all_patches_of_an_image_share_changes_no_mask(name: str, tiny_backbone: Path) -> None:
    """Light and colour of a device are such levels; in float64, so that no rounding hides behind a tolerance."""
    backbone = load_backbone(tiny_backbone)
    head = build_adapter(config_of(name), backbone, num_classes=1).double().eval()
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    features = compute_features(backbone, images, head.feature_spec.blocks, patches=True)
    assert features.patches is not None
    patches = features.patches.double()

    def logits(tokens: Tensor) -> Tensor:
        return head(Features(features.cls.double(), features.mean.double(), tokens, images.double()))

    level = torch.randn(2, patches.shape[1], 1, 1, generator=torch.Generator().manual_seed(1)).double()
    assert torch.allclose(logits(patches + level), logits(patches), atol=1e-9)
    assert not torch.allclose(logits(patches.flip(3)), logits(patches), atol=1e-3)  # it does read the tokens


def fine_pattern(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images (count, 3, 32, 32) of light and dark blocks of 2 px, and the mask of the light ones."""
    mask = (torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) > 0.5).float()
    mask = mask.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return (2 * mask - 1).expand(-1, 3, -1, -1).contiguous(), mask


def accuracy_after_training(config: SegmentConfig, folder: Path) -> float:
    backbone = load_backbone(folder)
    head = build_adapter(config, backbone, num_classes=1).train()
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)

    def logits_of(images: Tensor) -> Tensor:
        features = compute_features(backbone, images, head.feature_spec.blocks, patches=True)
        return interpolate(head(features), (32, 32), mode="bilinear")

    for step in range(80):
        images, mask = fine_pattern(8, step)
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(logits_of(images), mask).backward()
        optimizer.step()
    images, mask = fine_pattern(16, 1000)
    with torch.no_grad():
        return ((logits_of(images) > 0) == (mask > 0)).float().mean().item()


@pytest.mark.long
def test_blocks_finer_than_a_patch_are_learned_with_the_branch_and_not_without(tiny_backbone: Path) -> None:
    linear = accuracy_after_training(SegmentConfig(), tiny_backbone)
    fine = accuracy_after_training(config_of("dino_unet"), tiny_backbone)
    # The blocks of a patch of 8 px are independent: one logit a patch cannot follow them, chance is 0.5. A map at half
    # the resolution can, up to the bilinear edges of blocks of 2 px.
    assert linear < 0.65
    assert fine > 0.8


@pytest.mark.long
@pytest.mark.parametrize("name", ["dino_unet", "deeplabv3plus"])
def test_a_fit_with_the_branch_on_copies_gives_a_bundle_whose_graph_predicts_the_same(
    name: str, tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path
) -> None:
    fit = {"epochs": 2, "min_steps": 0, "batch_size": 8}
    config = config_of(name, image_size=64, augment_copies=1, fit=fit)
    manifest = read_manifest(lesion_manifest)
    folder = fit_head(load_backbone(tiny_backbone), manifest, tmp_path / "seg", config, cache=tmp_path / "cache").folder
    predictor = load_adapter(folder)
    assert predictor.adapter.config.image_channels == 3
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        traced = torch.jit.trace(AdapterGraph(predictor, 64).eval(), pixels[:2], check_trace=False)
        # Float32 sums in another order differ by about 1e-6.
        assert torch.allclose(traced(pixels), predictor.reference_outputs(pixels), atol=1e-5)
