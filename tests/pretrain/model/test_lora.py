"""Low-rank adaptation: the weights that learn, the teacher's average, and the saved backbone."""

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dinomed.backbones.config import ViTConfig
from dinomed.backbones.load import load_backbone
from dinomed.backbones.vit import VisionTransformer
from dinomed.errors import UsageError
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.model import lora as tune
from dinomed.pretrain.model.config import ObjectiveConfig, ProjectionHeadConfig
from dinomed.pretrain.model.dinov2 import backbone_of, build_side, update_ema
from dinomed.pretrain.model.initialisation import read_initialisation
from dinomed.pretrain.model.lora import LoraConfig, add_lora, check_student_tuning, plain_parameters
from dinomed.pretrain.monitoring.cost_estimate import _adapters
from dinomed.pretrain.resolve import fit_to_initialisation
from dinomed.pretrain.train_step import TrainStep
from dinomed.pretrain.trainer import pretrain

Tiny = Callable[..., PretrainConfig]
LORA = {"lora": {"rank": 2, "alpha": 4, "targets": ["qkv", "proj", "fc1", "fc2"]}}

pytestmark = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")


@pytest.fixture(scope="module")
def vit() -> VisionTransformer:
    torch.manual_seed(0)
    config = ViTConfig(embed_dim=16, depth=2, num_heads=2, patch_size=8, image_size=32, layerscale=None)
    backbone = VisionTransformer(config)
    add_lora(backbone, LoraConfig(rank=2, alpha=4, targets=("qkv", "proj", "fc1", "fc2")))
    for name, parameter in backbone.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)  # with zeros the adapters have no effect
    return backbone.eval()


def test_only_adapters_and_the_mask_token_learn(vit: VisionTransformer) -> None:
    learns = {name for name, p in vit.named_parameters() if p.requires_grad}
    assert {name for name in learns if ".lora_" not in name} == {"mask_token"}
    assert len(learns) == 1 + 2 * 4 * 2  # blocks, layers, A and B; the patch embedding's projection is none of them
    side = build_side(
        vit.config, ObjectiveConfig(ibot_weight=0, dino_head=ProjectionHeadConfig(hidden=8, prototypes=8))
    )
    lora = LoraConfig(rank=2, targets=("qkv", "proj", "fc1", "fc2"))
    assert _adapters(side, lora) == sum(vit.get_parameter(name).numel() for name in learns - {"mask_token"})


def test_a_plain_model_with_the_merged_weights_gives_the_same_tokens(vit: VisionTransformer) -> None:
    plain = VisionTransformer(vit.config).eval()
    merged = dict(plain_parameters(vit))
    assert list(merged) == [name for name, _ in plain.named_parameters()]  # the order, which the average relies on
    plain.load_state_dict(merged)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        # float32: W x + B (A x) against (W + B A) x
        torch.testing.assert_close(plain(images).patches, vit(images).patches, rtol=1e-4, atol=1e-4)
        layer = vit.blocks[0].attn.qkv
        by_hand = layer.base_layer.weight + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        torch.testing.assert_close(merged["blocks.0.attn.qkv.weight"], by_hand)


def test_the_average_follows_the_merged_weights(vit: VisionTransformer) -> None:
    slow = VisionTransformer(vit.config)
    before = {name: p.detach().clone() for name, p in slow.named_parameters()}
    update_ema(slow, vit, 0.75)
    for name, fast in plain_parameters(vit):
        wanted = 0.75 * before[name] + 0.25 * fast
        torch.testing.assert_close(slow.get_parameter(name).detach(), wanted, rtol=1e-5, atol=1e-6)


def test_a_run_keeps_the_base_weights_saves_a_plain_backbone_and_resumes_exactly(
    tiny: Tiny, tiny_backbone: Path, pictures: Path, tmp_path: Path
) -> None:
    start = {"weights": str(tiny_backbone), "warmup": 0.0}
    config = tiny(tune=LORA, start=start, run={"keep_checkpoints": 9}, teacher={"momentum": 0.5})
    whole = tmp_path / "whole"
    pretrain(config, pictures, whole, device="cpu")
    base, student = load_file(tiny_backbone / "model.safetensors"), {}
    for name, tensor in load_file(whole / "checkpoints/step_00000006/tensors.safetensors").items():
        if name.startswith("model.student.backbone."):
            student[name.removeprefix("model.student.backbone.")] = tensor
    for name, tensor in student.items():
        if ".lora_" not in name and name != "mask_token":
            assert torch.equal(tensor, base[name.replace(".base_layer.", ".")]), name
    assert all(tensor.any() for name, tensor in student.items() if ".lora_B." in name)

    after = load_backbone(whole).vit.state_dict()
    assert after.keys() == base.keys()
    moved = {name for name in base if not torch.equal(after[name], base[name])}
    layers = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    assert moved - {"mask_token"} == {f"blocks.{i}.{layer}" for i in range(3) for layer in layers}
    change = after["blocks.0.attn.qkv.weight"] - base["blocks.0.attn.qkv.weight"]
    assert torch.linalg.matrix_rank(change, tol=1e-7) > 2  # an average of low ranks has no low rank

    again = tmp_path / "again"
    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoints/step_00000006")
    pretrain(config, pictures, again, device="cpu", resume=True)
    ours, theirs = (load_file(run / "checkpoints/step_00000006/tensors.safetensors") for run in (again, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    # a run without LoRA that continues from it begins with the saved backbone and its heads
    config = tiny(start={"weights": str(whole)})
    initialisation = read_initialisation(config.start)
    train_step = TrainStep(fit_to_initialisation(config, initialisation), torch.device("cpu"), initialisation)
    for side in (train_step.model.student, train_step.model.teacher):
        assert all(torch.equal(t, after[name]) for name, t in backbone_of(side).state_dict().items())


def test_impossible_adaptations_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tune.StudentTuneConfig.model_validate(LORA)
    check_student_tuning(config, "mlp", has_weights=True)
    with pytest.raises(UsageError, match="has no initial weights; name them with `start`"):
        check_student_tuning(config, "mlp", has_weights=False)
    with pytest.raises(UsageError, match=r"targets fc1, fc2: the backbone's feed-forward is a swiglu"):
        check_student_tuning(config, "swiglu", has_weights=True)
    monkeypatch.setattr(tune, "world_size", lambda: 2)
    check_student_tuning(config, "mlp", has_weights=True)
    with pytest.raises(UsageError, match=r"run\.parallel=shard, because FSDP2 cannot"):
        check_student_tuning(config, "mlp", has_weights=True, parallel="shard")
    monkeypatch.setattr("dinomed.backbones.lora.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'dinomed\[lora\]'"):
        check_student_tuning(config, "mlp", has_weights=True)
