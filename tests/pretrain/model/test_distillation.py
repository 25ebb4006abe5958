"""Distillation of a large frozen teacher into a small student."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dinomed.backbones.load import load_backbone
from dinomed.errors import UsageError
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.losses.cross_entropy import ibot_loss
from dinomed.pretrain.model.dinov2 import ViewBatch
from dinomed.pretrain.model.distillation import Distillation
from dinomed.pretrain.model.initialisation import read_initialisation
from dinomed.pretrain.monitoring.cost_estimate import estimate
from dinomed.pretrain.resolve import fit_to_initialisation, fit_to_teacher, read_teacher, resolve_config
from dinomed.pretrain.train_step import TrainStep
from dinomed.pretrain.trainer import pretrain

Tiny = Callable[..., PretrainConfig]
LARGE = {"embed_dim": 32, "num_heads": 4, "depth": 3}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny, pictures: Path) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "large"
    heads = {"dino_head": {"prototypes": 40, "hidden": 16, "bottleneck": 8}}
    pretrain(tiny(backbone=LARGE, objective=heads, run={"steps": 3}), pictures, out, device="cpu")
    return out


@pytest.fixture
def model(tiny: Tiny, teacher: Path) -> Distillation:
    large = read_teacher(teacher)
    config = fit_to_teacher(tiny(), large)
    torch.manual_seed(0)
    return Distillation(config.backbone, config.objective, large).train()


def batch(images: int = 3) -> ViewBatch:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(2 * images, 16, generator=generator) < 0.4
    counts = masks.sum(1, keepdim=True).clamp_min(1)
    return ViewBatch(
        torch.randn(2 * images, 3, 32, 32, generator=generator),
        torch.randn(2 * images, 3, 16, 16, generator=generator),
        masks, masks.flatten().nonzero().flatten(), (1.0 / counts).expand_as(masks)[masks],
    )  # fmt: skip


def test_the_student_takes_the_shared_settings_from_the_teacher(model: Distillation, teacher: Path) -> None:
    assert model.student["dino_head"].prototypes.shape[0] == 40
    assert model.student["backbone"].config.embed_dim == 16
    assert model.student["backbone"].config.drop_path == 0
    kept = load_file(next((teacher / "checkpoints").glob("step_*3")) / "tensors.safetensors")
    for name, tensor in model.teacher.state_dict().items():
        assert torch.equal(tensor, kept[f"model.teacher.{name}"])


def test_no_masks_and_every_patch_counts(model: Distillation) -> None:
    prepared = model.prepare_batch(batch())
    assert not prepared.masks.any()
    assert len(prepared.masked) == 6 * 16
    losses = model(prepared, 0.07)
    # the definition, from the parts: all patch tokens of both global views, unmasked, against the teacher's
    with torch.no_grad():
        targets = model.make_targets(model.teacher_logits(prepared), 0.07)["ibot"]
        patches = model.student["backbone"](prepared.globals).patches.flatten(0, 1)
        scores = model.student["ibot_head"](patches)
        wanted = ibot_loss(scores, targets, torch.full((6 * 16,), 1 / 16), num_views=6)
    assert losses.terms["ibot"].item() == pytest.approx(wanted.item(), rel=1e-5)  # float32, packed and separate


def test_the_teacher_is_fixed_and_the_average_follows_the_student(model: Distillation) -> None:
    before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    model(model.prepare_batch(batch()), 0.07).total.backward()
    assert all(p.grad is None for side in (model.teacher, model.average) for p in side.parameters())
    start = {name: tensor.clone() for name, tensor in model.average.state_dict().items()}
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1.0)
    model.update_teacher(0.75)
    for name, tensor in model.average.state_dict().items():
        torch.testing.assert_close(tensor, start[name] + 0.25)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.teacher.state_dict().items())
    assert not model.average.training
    assert not model.teacher.training


def test_a_run_gives_the_small_backbone_and_resumes(tiny: Tiny, teacher: Path, pictures: Path, tmp_path: Path) -> None:
    whole = pretrain(tiny(), pictures, tmp_path / "whole", device="cpu", teacher=teacher)
    assert load_backbone(whole.folder).embed_dim == 16
    cut = shutil.copytree(whole.folder, tmp_path / "cut")
    (cut / "checkpoints" / "step_00000006" / "state.json").unlink()
    shutil.rmtree(cut / "backbone")
    pretrain(tiny(), pictures, cut, device="cpu", teacher=teacher, resume=True)
    first, resumed = (load_file(path / "backbone" / "model.safetensors") for path in (whole.folder, cut))
    assert all(torch.equal(first[name], resumed[name]) for name in first)


def test_a_student_learns_the_targets_of_its_teacher(tiny: Tiny, teacher: Path, pictures: Path, tmp_path: Path) -> None:
    """The DINO loss falls."""
    config = tiny(
        run={"steps": 30, "checkpoint_every": 100},
        optimizer={"lr": 5e-3},
        teacher={"temperature_start": 0.02, "temperature": 0.02},
    )
    pretrain(config, pictures, tmp_path / "run", device="cpu", teacher=teacher)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    kl = [line["dino_kl"] for line in lines if "dino_kl" in line]
    assert sum(kl[-5:]) < 0.8 * sum(kl[:5])


def test_a_teacher_that_does_not_fit_is_refused(tiny: Tiny, teacher: Path, pictures: Path) -> None:
    with pytest.raises(UsageError, match="fit them first with the backbone frozen"):
        read_teacher(teacher / "backbone")
    for place, message in (
        ("none", "teacher none does not exist"),
        (pictures, "is neither a run folder with a checkpoint nor a backbone"),
    ):
        with pytest.raises(UsageError, match=message):
            read_teacher(Path(place))
    with pytest.raises(UsageError, match="the patch size of the teacher is 8 px, that of the student 16 px"):
        fit_to_teacher(tiny(backbone={"patch_size": 16}), read_teacher(teacher))


def test_a_teacher_or_initial_weights_are_never_overwritten(tiny: Tiny, teacher: Path, pictures: Path) -> None:
    before = sorted(path.name for path in (teacher / "checkpoints").iterdir())
    with pytest.raises(UsageError, match="holds the weights that the run needs"):
        pretrain(tiny(), pictures, teacher, device="cpu", teacher=teacher, overwrite=True)
    with pytest.raises(UsageError, match="holds the weights that the run needs"):
        pretrain(tiny(start={"weights": str(teacher / "backbone")}), pictures, teacher, device="cpu", overwrite=True)
    assert sorted(path.name for path in (teacher / "checkpoints").iterdir()) == before


def test_a_folder_with_a_lock_alone_can_be_used(tiny: Tiny, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()  # left by a run that ended at once
    assert pretrain(tiny(run={"steps": 1}), pictures, tmp_path / "run", device="cpu").steps == 1


def test_a_distilled_run_starts_from_its_own_average_and_not_from_the_large_teacher(
    tiny: Tiny, teacher: Path, pictures: Path, tmp_path: Path
) -> None:
    """`--from`, `--phase highres` and a second distillation read the large teacher, whose tensors do not fit: 39 of 45
    tensors of the EMA teacher stayed random."""
    small = tmp_path / "small"
    pretrain(tiny(run={"steps": 3}), pictures, small, device="cpu", teacher=teacher)
    kept = load_file(next((small / "checkpoints").glob("step_*3")) / "tensors.safetensors")
    config = tiny(start={"weights": str(small)})
    initialisation = read_initialisation(config.start)
    step = TrainStep(fit_to_initialisation(config, initialisation), torch.device("cpu"), initialisation)
    assert step.config.start.warmup == 0
    for name, tensor in step.model.teacher.state_dict().items():
        assert torch.equal(tensor, kept[f"model.average.{name}"]), name
    for name, tensor in step.model.student.state_dict().items():
        assert torch.equal(tensor, kept[f"model.student.{name}"]), name
    again = read_teacher(small)
    assert again.backbone.embed_dim == 16
    assert all(torch.equal(tensor, kept[f"model.average.{name}"]) for name, tensor in again.weights.items())
    Distillation(again.backbone, again.objective, again)  # its weights fit


@pytest.mark.parametrize("method", ["heads", "features"])
def test_the_backbone_waits_while_a_head_for_the_teacher_is_new(
    tiny: Tiny, teacher: Path, finished: Path, pictures: Path, tmp_path: Path, method: str
) -> None:
    """The heads of the initial weights have the wrong number of prototypes for another teacher."""
    changes = {"distill": {"method": method}, "run": {"steps": 1}}
    config = tiny(start={"weights": str(finished)}, **changes)
    assert resolve_config(config, pictures, teacher=teacher).config.start.warmup == 0.1
    pretrain(tiny(**changes), pictures, tmp_path / "small", device="cpu", teacher=teacher)
    again = tiny(start={"weights": str(tmp_path / "small")}, **changes)
    assert resolve_config(again, pictures, teacher=teacher).config.start.warmup == 0


def test_the_estimate_counts_the_teacher_and_all_patches(tiny: Tiny, teacher: Path) -> None:
    large = read_teacher(teacher)
    config = fit_to_teacher(tiny(objective={"ibot_head": {"prototypes": 4096}}), large)
    config = config.model_copy(update={"objective": config.objective.model_copy(
        update={"ibot_head": config.objective.ibot_head.model_copy(update={"prototypes": 4096})})})  # fmt: skip
    alone = estimate(config, torch.device("cpu"))
    distilled = estimate(config, torch.device("cpu"), teacher=large)
    assert distilled.backbone_parameters == alone.backbone_parameters  # of the student
    # half of the views with 30% of their patches on average are masked; a distillation takes all patches of all views
    logits = 2 * 16 * 4096 * 4 * 3 * 4 * 2 / 2**30  # views x patches, prototypes, images, floats, bytes, both sides
    assert distilled.memory_gib - alone.memory_gib > 0.8 * logits * (1 - 0.5 * 0.3)
    assert distilled.teraflop_per_step > 2 * alone.teraflop_per_step
