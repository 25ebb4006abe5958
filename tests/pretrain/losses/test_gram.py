"""Gram anchoring: an independent computation, its start and its anchor, exact continuation."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dinomed.errors import UsageError
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.data.config import CropConfig
from dinomed.pretrain.data.crops import MultiCrop
from dinomed.pretrain.losses.gram import gram_loss, reduce_patches
from dinomed.pretrain.model.dinov2 import DINOv2, ViewBatch
from dinomed.pretrain.monitoring.cost_estimate import estimate
from dinomed.pretrain.resolve import resolve_config
from dinomed.pretrain.trainer import Trainer, pretrain

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


def halving_matrix(count: int) -> np.ndarray:
    """Weights (count / 2, count) of bicubic reduction to the half: Keys (1981), a = -0.75, borders repeated."""
    matrix = np.zeros((count // 2, count))
    for row in range(count // 2):
        for tap in range(2 * row - 1, 2 * row + 3):
            x = abs(2 * row + 0.5 - tap)  # the centre of the row lies between two taps
            a = -0.75
            inner, outer = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[row, min(max(tap, 0), count - 1)] += inner if x <= 1 else outer
    return matrix


def gram_of_halves(student: np.ndarray, teacher: np.ndarray, rows: int, columns: int) -> float:
    """Gram loss of a student (B, P, C) and of a teacher (B, 4P, C) whose maps are halved first, in float64."""
    maps = teacher.reshape(len(teacher), 2 * rows, 2 * columns, -1)
    halves = np.einsum("ri,bijc,sj->brsc", halving_matrix(2 * rows), maps, halving_matrix(2 * columns))
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (student, halves.reshape(student.shape))]
    grams = [np.einsum("bpc,bqc->bpq", x, x) for x in unit]
    return float(((grams[0] - grams[1]) ** 2).mean())


def test_a_teacher_of_twice_the_resolution_equals_numpy() -> None:
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 12, 7)), generator.normal(size=(2, 48, 7))
    reduced = reduce_patches(torch.from_numpy(teacher), (3, 4), 2)
    loss = float(gram_loss(torch.from_numpy(student), reduced))
    assert loss == pytest.approx(gram_of_halves(student, teacher, 3, 4), rel=1e-5)  # float32


def test_the_anchor_sees_the_views_at_twice_their_size(tiny: Tiny, pictures: Path, tmp_path: Path) -> None:
    objective = {"gram_weight": 2.0, "gram_start": 0.5, "gram_refresh": 0.0, "gram_scale": 2}
    config = tiny(objective=objective, backbone={"drop_path": 0})
    batches = list(Trainer(resolve_config(config, pictures), tmp_path, torch.device("cpu"))._batches(0))
    first = config.run.steps // 2
    assert all((batch.anchors is None) == (step < first) for step, batch in enumerate(batches))
    raw = batches[-1].split(2)[0]  # slices hold the enlarged views of their images
    views = raw.globals.permute(0, 3, 1, 2).float()
    assert raw.anchors is not None
    anchors = raw.anchors.permute(0, 3, 1, 2).float()
    assert anchors.shape[2:] == (64, 64)
    means = torch.nn.functional.avg_pool2d(anchors, 2)
    assert float((means - views).abs().mean()) < 0.2 * float((means.flip(0) - views).abs().mean())  # the same windows

    torch.manual_seed(0)
    model = DINOv2(config.backbone, config.objective).train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.2)
    model.set_step(first, config.run.steps)
    batch = ViewBatch(views / 255, torch.empty(0), raw.masks, raw.masked, raw.mask_weights, anchors / 255)
    with torch.no_grad():
        student = model.student["backbone"](batch.globals).patches
        teacher = model.teacher["backbone"](batch.anchors).patches  # the anchor of this step
        loss = float(model._gram_loss(batch, student))
    expected = gram_of_halves(student.double().numpy(), teacher.double().numpy(), 4, 4)
    assert loss == pytest.approx(expected, rel=1e-4)  # float32
    assert loss > 1e-6


def test_the_enlarged_views_have_the_windows_colours_and_blur_of_the_others() -> None:
    coarse = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (128, 128), interpolation=cv2.INTER_CUBIC)
    sizes = {"global_size": 32, "local_size": 16, "num_local": 2}
    blurred = {"global_scale": (1, 1), "blur_sigma": (2, 2), "jitter_probability": 0, "gray_probability": 0}
    for settings in ({}, blurred):
        crops = MultiCrop(CropConfig(**sizes, **settings))
        for seed in range(5):
            views, anchors = crops(image, seed)[0], crops.anchors(image, seed)
            means = anchors.reshape(2, 32, 2, 32, 2, 3).mean((2, 4))
            assert np.abs(means - views)[0].mean() < 4  # grey levels; a blur of half the width differs by 20
            if not settings:
                assert np.abs(means - views).mean() < 0.1 * np.abs(means - views[::-1]).mean()
    assert CropConfig(**sizes).smallest_area(2) == pytest.approx(64**2 / 0.32, abs=1)


def test_the_estimate_counts_the_enlarged_views(tiny: Tiny) -> None:
    cpu = torch.device("cpu")
    none, one, two = (
        estimate(tiny(objective=objective), cpu)
        for objective in (
            {},
            {"gram_weight": 1.0, "gram_start": 0.0},
            {"gram_weight": 1.0, "gram_start": 0.0, "gram_scale": 2},
        )
    )
    more = (two.teraflop_per_step - none.teraflop_per_step) / (one.teraflop_per_step - none.teraflop_per_step)
    assert 3.5 < more < 8  # 3.8 times the tokens, and attention that grows with their square
    assert two.memory_gib > one.memory_gib > none.memory_gib


def test_the_steps_of_a_refresh() -> None:
    objective = PretrainConfig().objective.model_copy(update={"gram_start": 0.5, "gram_refresh": 0.2})
    assert [step for step in range(100) if objective.is_gram_refresh(step, 100)] == [50, 70, 90]
    never = objective.model_copy(update={"gram_refresh": 0.0})
    assert [step for step in range(100) if never.is_gram_refresh(step, 100)] == [50]


@pytest.mark.parametrize("scale", [pytest.param(1, marks=pytest.mark.long), 2])
def test_a_run_with_it_resumes_exactly_and_can_be_a_teacher(
    scale: int, resumed_equals: Callable[..., bool], tiny: Tiny, pictures: Path, tmp_path: Path
) -> None:
    config = tiny(objective={"gram_weight": 1.0, "gram_start": 0.0, "gram_refresh": 0.5, "gram_scale": scale})
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
