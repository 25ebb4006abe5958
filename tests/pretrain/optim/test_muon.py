"""Muon for the matrices of blocks and heads, AdamW for all other weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dinomed.errors import UsageError
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.model.dinov2 import DINOv2
from dinomed.pretrain.optim.optimizer import OptimizerDriver
from dinomed.pretrain.trainer import pretrain

Tiny = Callable[..., PretrainConfig]
MUON = {"matrices": "muon"}


def test_muon_takes_matrices_of_blocks_and_head_mlps_and_no_others(tiny: Tiny) -> None:
    config = tiny(optimizer=MUON)
    student = DINOv2(config.backbone, config.objective).student
    driver = OptimizerDriver(student, config.optimizer, 4, 10)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    adamw, muon = (
        {names[id(p)] for group in optimizer.param_groups for p in group["params"]} for optimizer in driver.optimizers
    )
    assert adamw | muon == set(names.values())
    assert not adamw & muon
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    blocks = {f"backbone.blocks.{index}.{layer}.weight" for index in range(2) for layer in layers}
    heads = {f"{head}.mlp.{layer}.weight" for head in ("dino_head", "ibot_head") for layer in (0, 2, 4)}
    assert muon == blocks | heads


def test_a_step_of_muon_is_orthogonal_and_as_long_as_one_of_adamw(tiny: Tiny) -> None:
    config = tiny(optimizer={**MUON, "weight_decay": 0.0, "weight_decay_end": 0.0, "warmup": 0.0})
    torch.manual_seed(0)
    student = DINOv2(config.backbone, config.objective).student
    driver = OptimizerDriver(student, config.optimizer, 4, 10)
    weight = student["backbone"].blocks[0].attn.qkv.weight  # 48 x 16
    before, gradient = weight.detach().clone(), torch.randn_like(weight)
    lr = driver.set_schedules(0)
    weight.grad = gradient.clone()
    driver.take_step(torch.amp.GradScaler("cpu", enabled=False))
    step = (before - weight.detach()) / lr
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    # Newton-Schulz in bfloat16 gives singular values of 0.7 to 1.2 in place of 1, times 0.2 * sqrt(largest side)
    singular = torch.linalg.svdvals(step) / (0.2 * 48**0.5)
    assert 0.6 < float(singular.min()) <= float(singular.max()) < 1.3
    alignment = torch.nn.functional.cosine_similarity(step.flatten(), (u @ v).flatten(), dim=0)
    assert float(alignment) > 0.97
    assert 0.1 < float(step.square().mean().sqrt()) < 0.3  # AdamW: 0.2 to 0.4 (Liu et al. 2025, section 2.2)


def test_a_run_with_muon_resumes_exactly(
    resumed_equals: Callable[..., bool], finished: Path, tiny: Tiny, pictures: Path, tmp_path: Path
) -> None:
    config = tiny(optimizer=MUON)
    whole = pretrain(config, pictures, tmp_path / "whole", device="cpu")
    assert resumed_equals(config, whole)
    first = load_file(whole.folder / "backbone" / "model.safetensors")
    plain = load_file(finished / "backbone" / "model.safetensors")
    name = "blocks.0.attn.qkv.weight"
    assert not torch.equal(first[name], plain[name])


def test_muon_with_float16_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="muon does not work"):
        tiny(optimizer=MUON, run={"precision": "float16"})
