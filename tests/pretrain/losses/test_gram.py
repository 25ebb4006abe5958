"""Gram anchoring: an independent computation, its start and its anchor, exact continuation."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dinomed.errors import UsageError
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.losses.gram import gram_loss
from dinomed.pretrain.model.dinov2 import DINOv2, ViewBatch
from dinomed.pretrain.trainer import pretrain

Tiny = Callable[..., PretrainConfig]


def test_the_loss_equals_cosines_pair_by_pair() -> None:
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 2, 5, 7))
    total = 0.0
    for image in range(2):
        for i in range(5):
            for j in range(5):
                cosines = [
                    float(x[image, i] @ x[image, j] / np.linalg.norm(x[image, i]) / np.linalg.norm(x[image, j]))
                    for x in (student, teacher)
                ]
                total += (cosines[0] - cosines[1]) ** 2
    loss = gram_loss(torch.from_numpy(student), torch.from_numpy(teacher))
    assert float(loss) == pytest.approx(total / 50, rel=1e-5)  # float32


def test_lengths_and_rotations_of_features_are_free() -> None:
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    assert float(gram_loss(3 * x @ rotation, x)) < 1e-10
    assert float(gram_loss(x.flip(1), x)) > 1e-3


def batch_of(size: int = 32) -> ViewBatch:
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(4, 16, dtype=torch.bool)
    masks[0, :3] = True
    views, local = (torch.randn(4, 3, side, side, generator=generator) for side in (size, size // 2))
    return ViewBatch(views, local, masks, masks.flatten().nonzero().flatten(), torch.full((3,), 1 / 3))


def test_it_starts_at_its_step_and_anchors_to_the_teacher_of_that_step(tiny: Tiny) -> None:
    config = tiny(objective={"gram_weight": 2.0, "gram_start": 0.5, "gram_refresh": 0.2}, backbone={"drop_path": 0})
    torch.manual_seed(0)
    model = DINOv2(config.backbone, config.objective).train()
    batch = batch_of()
    model.set_step(49, 100)
    before = model(batch, 0.07)
    assert float(before.terms["gram"]) == 0.0
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.set_step(50, 100)
    anchored = {name: value.clone() for name, value in model.teacher["backbone"].state_dict().items()}
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.set_step(55, 100)  # no refresh: the anchor stays that of step 50
    assert all(torch.equal(value, anchored[name]) for name, value in model.anchor["backbone"].state_dict().items())
    losses = model(batch, 0.07)
    with torch.no_grad():
        student = model.student["backbone"](batch.globals, batch.masks).patches
        expected = gram_loss(student, model.anchor["backbone"](batch.globals).patches)
    assert float(losses.terms["gram"]) == pytest.approx(float(expected), rel=1e-4)  # float32
    rest = losses.terms["dino"] + losses.terms["ibot"] + 0.1 * losses.terms["koleo"]
    assert float(losses.total.detach()) == pytest.approx(float(rest + 2.0 * expected), rel=1e-4)
    losses.total.backward()
    assert all(parameter.grad is None for parameter in model.anchor.parameters())
    model.set_step(70, 100)
    renewed = model.anchor["backbone"].state_dict()
    assert all(torch.equal(value, renewed[name]) for name, value in model.teacher["backbone"].state_dict().items())


def test_the_steps_of_a_refresh() -> None:
    objective = PretrainConfig().objective.model_copy(update={"gram_start": 0.5, "gram_refresh": 0.2})
    assert [step for step in range(100) if objective.is_gram_refresh(step, 100)] == [50, 70, 90]
    never = objective.model_copy(update={"gram_refresh": 0.0})
    assert [step for step in range(100) if never.is_gram_refresh(step, 100)] == [50]


def test_a_run_with_it_resumes_exactly_and_can_be_a_teacher(
    resumed_equals: Callable[..., bool], tiny: Tiny, pictures: Path, tmp_path: Path
) -> None:
    config = tiny(objective={"gram_weight": 1.0, "gram_start": 0.0, "gram_refresh": 0.5})
    whole = pretrain(config, pictures, tmp_path / "whole", device="cpu")
    assert whole.losses["gram"] > 0
    assert resumed_equals(config, whole)
    student = pretrain(config, pictures, tmp_path / "student", device="cpu", teacher=whole.folder)
    assert "gram" not in student.losses


def test_it_needs_all_patches(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="gram_weight needs all patches"):
        tiny(
            objective={"gram_weight": 1.0, "predictor_depth": 1},
            masks={"shape": "random", "probability": 1.0, "ratio": [0.5, 0.5]},
        )
