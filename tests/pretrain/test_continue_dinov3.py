"""Pretraining that starts from a DINOv3 folder: rotary positions and registers, an interruption, and the result."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dinomed.backbones.load import load_backbone

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "crops.global_size=64", "crops.local_size=32", "crops.num_local=2", "run.batch_size=8", "run.micro_batch=4",
    "run.precision=float32", "run.workers=0", "run.checkpoint_every=2", "run.keep_checkpoints=5", "run.steps=4",
    "objective.dino_head.hidden=32", "objective.ibot_head.hidden=32", "backbone.drop_path=0.3",
]  # fmt: skip


def test_a_dinov3_model_is_pretrained_further_and_resumed(
    lesion_manifest: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.DINOv3ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, num_register_tokens=4
    )
    transformers.DINOv3ViTModel(config).save_pretrained(tmp_path / "dinov3")
    (tmp_path / "dinov3" / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "size": {"height": 64, "width": 64}}'
    )
    sets = [word for setting in SMALL for word in ("--set", setting)]
    words = [
        "pretrain", ROOT / "configs" / "pretrain" / "vit_tiny_cpu.yaml", "--data", lesion_manifest, "--device", "cpu",
        "--from", tmp_path / "dinov3", *sets,
    ]  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    code, _, err = run(*words, "-o", whole)
    assert code == 0, err
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step_00000004")
    code, _, err = run(*words, "-o", cut, "--resume")
    assert code == 0, err
    first, again, before = (load_backbone(folder) for folder in (whole, cut, tmp_path / "dinov3"))
    assert (first.vit.config.position, first.vit.config.num_registers) == ("rope", 4)
    assert first.preprocessing.mean == (0.5, 0.5, 0.5)
    assert first.fingerprint == again.fingerprint != before.fingerprint
    assert "pos_embed" not in first.vit.state_dict()
