"""Initialisation from trained weights: heads first, other image sizes, other channels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dinomed.backbones.load import load_backbone
from dinomed.errors import UsageError
from dinomed.layers.patch_embedding import resize_position_embedding
from dinomed.pretrain.config import PretrainConfig, to_high_resolution
from dinomed.pretrain.model.initialisation import read_initialisation
from dinomed.pretrain.optim.optimizer import OptimizerDriver
from dinomed.pretrain.resolve import fit_to_initialisation
from dinomed.pretrain.train_step import TrainStep
from dinomed.pretrain.trainer import pretrain

Tiny = Callable[..., PretrainConfig]
CPU = torch.device("cpu")


def begin(config: PretrainConfig) -> TrainStep:
    initialisation = read_initialisation(config.start)
    return TrainStep(fit_to_initialisation(config, initialisation), CPU, initialisation)


def test_the_weights_of_a_run_contain_its_heads(tiny: Tiny, finished: Path) -> None:
    train_step = begin(tiny(start={"weights": str(finished)}))
    assert train_step.config.start.warmup == 0
    kept = load_file(next((finished / "checkpoints").glob("step_00000006")) / "tensors.safetensors")
    for name, tensor in train_step.model.state_dict().items():
        assert torch.equal(tensor, kept[f"model.{name}"]), name


def test_heads_have_the_shapes_of_the_checkpoint_whatever_the_config_says(
    tiny: Tiny, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe with `scale_to_data` names 65,536 prototypes where its run had 4,096: they were dropped for new ones."""
    other_heads = {"dino_head": {"prototypes": 32}, "ibot_head": {"prototypes": 64, "hidden": 8}}
    train_step = begin(tiny(start={"weights": str(finished)}, objective=other_heads))
    assert "with its heads" in capsys.readouterr().err
    assert train_step.config.start.warmup == 0
    kept = load_file(next((finished / "checkpoints").glob("step_00000006")) / "tensors.safetensors")
    for name, tensor in train_step.model.state_dict().items():
        assert torch.equal(tensor, kept[f"model.{name}"]), name


@pytest.mark.parametrize("learned", [True, False])
def test_a_head_keeps_learned_or_fixed_norms_of_the_checkpoint(
    tiny: Tiny, pictures: Path, tmp_path: Path, learned: bool
) -> None:
    def heads(learned_norm: bool) -> dict[str, object]:
        return {name: {"learned_norm": learned_norm} for name in ("dino_head", "ibot_head")}

    pretrain(tiny(objective=heads(learned), run={"steps": 1}), pictures, tmp_path / "run", device="cpu")
    train_step = begin(tiny(start={"weights": str(tmp_path / "run")}, objective=heads(not learned)))
    assert train_step.config.objective.dino_head.learned_norm == learned
    assert ("dino_head.prototype_norms" in train_step.model.student.state_dict()) == learned
    assert train_step.config.start.warmup == 0


def test_the_backbone_waits_while_a_head_is_new(tiny: Tiny, pictures: Path, tmp_path: Path) -> None:
    dino_only = tiny(objective={"ibot_weight": 0.0}, run={"steps": 1})
    pretrain(dino_only, pictures, tmp_path / "dino", device="cpu")
    train_step = begin(tiny(start={"weights": str(tmp_path / "dino")}))
    assert train_step.config.objective.dino_head == dino_only.objective.dino_head
    assert train_step.config.start.warmup == 0.1  # the iBOT head is new, and the DINO head is not


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": {"predictor_depth": 1}, "masks": {"shape": "random", "probability": 1.0, "ratio": [0.75, 0.75]}},
        {"objective": {"pixel_weight": 1.0}},
    ],
    ids=str,
)
def test_the_backbone_waits_while_a_predictor_or_a_regression_is_new(
    tiny: Tiny, finished: Path, pictures: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    new = begin(tiny(start={"weights": str(finished)}, **changes))
    assert new.config.start.warmup == 0.1
    pretrain(tiny(run={"steps": 1}, **changes), pictures, tmp_path / "run", device="cpu")
    assert begin(tiny(start={"weights": str(tmp_path / "run")}, **changes)).config.start.warmup == 0


def test_the_positions_of_a_predictor_are_resized_with_those_of_the_backbone(
    tiny: Tiny, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They stayed random in the high-resolution phase."""
    masks = {"shape": "random", "probability": 1.0, "ratio": [0.75, 0.75]}
    config = tiny(objective={"predictor_depth": 1}, masks=masks, run={"steps": 1})
    pretrain(config, pictures, tmp_path / "run", device="cpu")
    kept = load_file(next((tmp_path / "run/checkpoints").glob("step_*1")) / "tensors.safetensors")
    large = config.model_copy(update={"start": config.start.model_copy(update={"weights": str(tmp_path / "run")})})
    step = begin(to_high_resolution(large, 64))
    assert step.config.start.warmup == 0
    assert "with its heads" in capsys.readouterr().err
    for side in ("student", "teacher"):
        wanted = resize_position_embedding(kept[f"model.{side}.predictor.position"], (8, 8))
        assert torch.equal(step.model.state_dict()[f"{side}.predictor.position"], wanted)


def test_a_backbone_has_no_heads_and_initialises_both_sides(tiny: Tiny, tiny_backbone: Path) -> None:
    train_step = begin(tiny(start={"weights": str(tiny_backbone)}))
    assert train_step.config.start.warmup == 0.1
    assert train_step.config.backbone.embed_dim == 32  # the weights', not the config's 16
    assert train_step.config.backbone.drop_path == 0.3  # the config's
    wanted = load_backbone(tiny_backbone).vit.state_dict()
    for side in (train_step.model.student, train_step.model.teacher):
        for name, tensor in side["backbone"].state_dict().items():
            assert torch.equal(tensor, wanted[name]), name


def test_heads_learn_first_and_then_the_backbone_with_a_rising_rate(tiny: Tiny) -> None:
    from dinomed.pretrain.model.dinov2 import DINOv2

    config = tiny()
    model = DINOv2(config.backbone, config.objective)
    driver = OptimizerDriver(model.student, config.optimizer, 4, 100, heads_first=0.2)
    rates = {}
    for step in (19, 20, 30, 40, 60):
        lr = driver.set_schedules(step)
        kinds = {group["kind"]: group["lr"] / group["lr_factor"] / lr for group in driver.adamw.param_groups}
        rates[step] = (kinds["backbone"], kinds["other"])
    assert rates == {19: (0, 1), 20: (0, 1), 30: (pytest.approx(0.5), 1), 40: (1, 1), 60: (1, 1)}


def test_with_the_backbone_frozen_throughout_only_heads_and_mask_token_change(
    tiny: Tiny, finished: Path, pictures: Path, tmp_path: Path
) -> None:
    """This is how heads are fitted to a released backbone before distillation."""
    backbone = finished / "backbone"
    pretrain(tiny(start={"weights": str(backbone), "warmup": 1.0}), pictures, tmp_path / "heads", device="cpu")
    before, after = load_file(backbone / "model.safetensors"), load_file(tmp_path / "heads/backbone/model.safetensors")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"mask_token"}


def test_more_channels_and_larger_images(tiny: Tiny, finished: Path) -> None:
    changes = {"backbone": {"in_channels": 1}, "mean": [0.5], "std": [0.25], "crops": {"global_size": 64}}
    train_step = begin(tiny(start={"weights": str(finished), "resize_positions": True}, **changes))
    backbone = train_step.model.ema_backbone
    old = load_backbone(finished).vit
    assert backbone.patch_embed.proj.weight.shape[1] == 1
    torch.testing.assert_close(backbone.patch_embed.proj.weight, old.patch_embed.proj.weight.sum(1, keepdim=True))
    assert backbone.pos_embed.shape[1] == 1 + 8 * 8
    gray = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        # a gray picture in three channels gives what it gives in one; float32
        torch.testing.assert_close(
            backbone.patch_embed(gray), old.patch_embed(gray.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5
        )


def test_the_high_resolution_phase_grows_all_crops_and_shortens_the_run(tiny: Tiny, finished: Path) -> None:
    config = to_high_resolution(tiny(start={"weights": str(finished)}, run={"steps": 100}), 64)
    assert (config.crops.global_size, config.crops.local_size, config.run.steps) == (64, 32, 8)
    assert config.optimizer.lr == pytest.approx(1e-4)
    train_step = begin(config)
    assert train_step.model.ema_backbone.pos_embed.shape[1] == 1 + 8 * 8
    assert "dino_head" in train_step.model.student


def test_missing_weights_are_refused(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="no known name and no existing path"):
        read_initialisation(tiny(start={"weights": "nowhere"}).start)
    with pytest.raises(UsageError, match=r"start\.file x\.pth needs start\.weights"):
        read_initialisation(tiny(start={"file": "x.pth"}).start)
