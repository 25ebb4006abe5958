"""Regression of pixels and of gradient histograms of masked patches."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dinomed.errors import UsageError
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.losses.pixels import hog_targets, masked_regression_loss, num_values, pixel_targets
from dinomed.pretrain.model.dinov2 import DINOv2, ViewBatch
from dinomed.pretrain.trainer import pretrain

Tiny = Callable[..., PretrainConfig]


def test_pixels_of_a_patch_are_normalised_by_its_own_mean_and_variance() -> None:
    views = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    targets = pixel_targets(views, 8)
    assert targets.shape == (2, 6, num_values("pixels", 8, 3))
    patch = views[1, :, 8:16, 16:24].flatten()  # the last of 2 x 3 patches
    torch.testing.assert_close(targets[1, 5], (patch - patch.mean()) / (patch.var() + 1e-6).sqrt())


def test_gradient_histograms_equal_a_count_pixel_by_pixel() -> None:
    views = torch.randn(1, 2, 16, 32, generator=torch.Generator().manual_seed(0))
    targets = hog_targets(views, 16)
    assert targets.shape == (1, 2, num_values("hog", 16, 2)) == (1, 2, 2 * 9 * 4)
    image = np.pad(views[0].numpy(), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    counts = np.zeros((2, 9, 2, 4))  # channel, direction, rows and columns of cells
    for channel in range(2):
        for y in range(16):
            for x in range(32):
                dx = image[channel, y + 1, x + 2] - image[channel, y + 1, x]
                dy = image[channel, y + 2, x + 1] - image[channel, y, x + 1]
                direction = min(int(math.atan2(dy, dx) % math.pi / math.pi * 9), 8)
                counts[channel, direction, y // 8, x // 8] += math.hypot(dx, dy)
    counts /= np.linalg.norm(counts, axis=1, keepdims=True)
    for patch in range(2):  # a patch has 2 x 2 cells
        expected = counts[:, :, :, 2 * patch : 2 * patch + 2].ravel()
        np.testing.assert_allclose(targets[0, patch].numpy(), expected, rtol=1e-4, atol=1e-5)  # float32


@pytest.mark.parametrize("target", ["pixels", "hog"])
def test_the_loss_is_the_mean_error_on_masked_patches_only(tiny: Tiny, target: str) -> None:
    config = tiny(objective={"pixel_weight": 0.5, "pixel_target": target}, backbone={"drop_path": 0})
    torch.manual_seed(0)
    model = DINOv2(config.backbone, config.objective).train()
    masks = torch.zeros(4, 16, dtype=torch.bool)
    masks[0, :3], masks[3, 5] = True, True
    counts = masks.sum(1, keepdim=True).clamp_min(1)
    views, local = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 16, 16)
    batch = ViewBatch(views, local, masks, masks.flatten().nonzero().flatten(), (1.0 / counts).expand_as(masks)[masks])
    losses = model(batch, 0.07)
    describe = pixel_targets if target == "pixels" else hog_targets
    with torch.no_grad():
        patches = model.student["backbone"](views, masks).patches
        error = (model.student["pixel_head"](patches) - describe(views, 8)).square().mean(-1)
        expected = (error[0, :3].mean() + error[3, 5]) / 4  # 4 global views, 2 of them masked
    assert float(losses.terms["pixel"]) == pytest.approx(float(expected), rel=1e-4)  # float32
    other_losses = losses.terms["dino"] + losses.terms["ibot"] + 0.1 * losses.terms["koleo"]
    assert float(losses.total.detach()) == pytest.approx(float(other_losses + 0.5 * expected), rel=1e-4)
    model.set_step(50, 100)
    assert float(model(batch, 0.07).total.detach()) == pytest.approx(float(other_losses + 0.25 * expected), rel=1e-4)


def test_the_weight_falls_to_zero_over_the_decay(tiny: Tiny) -> None:
    objective = tiny(objective={"pixel_weight": 2.0, "pixel_decay": 0.5}).objective
    assert [objective.pixel_weight_at(step, 100) for step in (0, 25, 50, 99)] == [2.0, 1.0, 0.0, 0.0]


@pytest.mark.long
def test_a_run_with_the_regression_resumes_exactly_and_can_be_a_teacher(
    resumed_equals: Callable[..., bool], tiny: Tiny, pictures: Path, tmp_path: Path
) -> None:
    config = tiny(objective={"pixel_weight": 1.0, "pixel_target": "hog"})
    whole = pretrain(config, pictures, tmp_path / "whole", device="cpu")
    assert "pixel" in whole.losses
    assert resumed_equals(config, whole)
    student = pretrain(config, pictures, tmp_path / "student", device="cpu", teacher=whole.folder)
    assert "pixel" not in student.losses  # a distillation masks no patch


def test_pixels_need_masked_patches(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="masks none of 16 patches"):
        tiny(objective={"ibot_weight": 0, "pixel_weight": 1.0}, masks={"ratio": [0.0, 0.01]})


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_the_loss_of_half_precision_values_is_computed_in_float32(half: torch.dtype) -> None:
    """The square of 300 is above the range of float16, and bfloat16 keeps 8 bits of it."""
    predicted = torch.full((3, 4), 300.0, dtype=half, requires_grad=True)
    loss = masked_regression_loss(predicted, torch.ones(3, 4, dtype=half), torch.ones(3), 1)
    assert loss.dtype == torch.float32
    assert loss.item() == 3 * 299.0**2
    loss.backward()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()
