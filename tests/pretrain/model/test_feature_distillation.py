"""Distillation of a frozen backbone by its features."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dinomed.backbones.config import ViTConfig
from dinomed.backbones.load import load_backbone, save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.errors import UsageError
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.model.accumulation import forward_backward
from dinomed.pretrain.model.dinov2 import ViewBatch
from dinomed.pretrain.model.feature_distillation import FeatureDistillation
from dinomed.pretrain.monitoring.cost_estimate import estimate
from dinomed.pretrain.resolve import read_teacher, resolve_config
from dinomed.pretrain.train_step import TrainStep
from dinomed.pretrain.trainer import pretrain

Tiny = Callable[..., PretrainConfig]
FEATURES = {"method": "features"}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone without heads, with another width, patch size and normalisation than the student."""
    folder = tmp_path_factory.mktemp("teacher") / "large"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vit = VisionTransformer(ViTConfig(embed_dim=24, depth=2, num_heads=2, patch_size=14, image_size=56))
        with torch.no_grad():  # tokens that differ
            for parameter in vit.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    save_backbone(folder, vit, Preprocessing(image_size=56, mean=(0.4, 0.4, 0.4), std=(0.3, 0.3, 0.3)))
    return folder


def build(config: PretrainConfig, pictures: Path, teacher: Path) -> FeatureDistillation:
    resolved = resolve_config(config, pictures, teacher=teacher)
    step = TrainStep(resolved.config, CPU, teacher=resolved.teacher)
    assert isinstance(step.model, FeatureDistillation)
    return step.model


def views(images: int = 3) -> ViewBatch:
    pixels = torch.randn(2 * images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2 * images, 16, dtype=torch.bool)
    return ViewBatch(pixels, torch.empty(0, 3, 16, 16), masks, torch.empty(0, dtype=torch.long), torch.empty(0))


@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_the_losses_equal_a_direct_computation(tiny: Tiny, pictures: Path, teacher: Path, loss: str) -> None:
    weights = {"class_weight": 0.5, "patch_weight": 2.0}
    model = build(tiny(distill={**FEATURES, "loss": loss, **weights}), pictures, teacher)
    batch = views()
    losses = model(batch, 0.07)
    with torch.no_grad():
        # 32 px are 4 patches of 8 px of the student, and 4 patches of 14 px of the teacher
        large = torch.nn.functional.interpolate(batch.globals, (56, 56), mode="bicubic", antialias=True)
        targets = load_backbone(teacher).vit(large)
        tokens = model.student["backbone"](batch.globals)
        projector = model.student["projector"]
        expected = {}
        pairs = {"class": (tokens.cls, targets.cls), "patch": (tokens.patches, targets.patches)}
        for name, (of_student, target) in pairs.items():
            projected = of_student @ projector.weight.T + projector.bias
            if loss == "mse":
                expected[name] = ((projected - target) ** 2).mean()
            else:
                lengths = projected.norm(dim=-1) * target.norm(dim=-1)
                expected[name] = (1 - (projected * target).sum(-1) / lengths).mean()
    assert losses.terms.keys() == expected.keys()
    for name, value in expected.items():
        assert float(losses.terms[name]) == pytest.approx(float(value), rel=1e-5)  # float32
    total = 0.5 * expected["class"] + 2 * expected["patch"]
    assert float(losses.total.detach()) == pytest.approx(float(total), rel=1e-5)
    losses.total.backward()
    assert all(parameter.grad is None for side in (model.teacher, model.average) for parameter in side.parameters())
    assert model.student["backbone"].blocks[0].attn.qkv.weight.grad.abs().max() > 0
    assert model.student["projector"].weight.grad.abs().max() > 0


def test_slices_give_the_gradients_of_the_whole_batch(tiny: Tiny, pictures: Path, teacher: Path) -> None:
    import contextlib

    model, batch = build(tiny(distill=FEATURES), pictures, teacher), views()

    def part(rows: list[int]) -> ViewBatch:
        return replace(batch, globals=batch.globals[rows], masks=batch.masks[rows])

    def gradients(slices: list[ViewBatch]) -> list[torch.Tensor]:
        model.zero_grad()
        loads = [lambda piece=piece: piece for piece in slices]
        forward_backward(model, loads, 0.07, contextlib.nullcontext, torch.Tensor.backward)
        return [p.grad.clone() for p in model.student.parameters() if p.grad is not None]

    whole = gradients([batch])
    sliced = gradients([part([0, 1, 3, 4]), part([2, 5])])  # rows are sorted by view
    for expected, computed in zip(whole, sliced, strict=True):
        torch.testing.assert_close(expected, computed, rtol=1e-4, atol=1e-6)  # float32 sums in another order


def test_a_run_from_a_backbone_without_heads_learns_and_resumes_exactly(
    tiny: Tiny, pictures: Path, teacher: Path, tmp_path: Path
) -> None:
    config = tiny(distill=FEATURES, optimizer={"lr": 5e-3}, run={"steps": 20, "checkpoint_every": 10})
    whole = pretrain(config, pictures, tmp_path / "whole", device="cpu", teacher=teacher)
    assert load_backbone(whole.folder).embed_dim == 16
    assert load_backbone(whole.folder).preprocessing.mean == (0.4, 0.4, 0.4)  # the teacher's
    lines = [json.loads(line) for line in (whole.folder / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    cut = shutil.copytree(whole.folder, tmp_path / "cut")
    (cut / "checkpoints" / "step_00000020" / "state.json").unlink()
    shutil.rmtree(cut / "backbone")
    pretrain(config, pictures, cut, device="cpu", teacher=teacher, resume=True)
    first, second = (load_file(path / "backbone" / "model.safetensors") for path in (whole.folder, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)

    with pytest.raises(UsageError, match="was trained without heads"):
        read_teacher(whole.folder)
    again = resolve_config(tiny(distill=FEATURES), pictures, teacher=whole.folder)  # a run is a teacher too
    assert again.teacher is not None
    assert torch.equal(again.teacher.weights["backbone.cls_token"], first["cls_token"])
    continued = resolve_config(tiny(start={"weights": str(whole.folder)}), pictures)
    assert continued.config.start.warmup == 0.1  # its heads are new
    step = TrainStep(continued.config, CPU, continued.initialisation)
    assert torch.equal(step.model.teacher["backbone"].cls_token, first["cls_token"])


def clip_folder(folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    transformers.CLIPVisionModel(config).save_pretrained(folder)


def timm_folder(folder: Path, name: str, **arguments: int) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    models = pytest.importorskip("timm.models")
    arguments = {"embed_dim": 32, "depth": 2, "num_heads": 2, **arguments}
    model = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    config = {"architecture": name, "model_args": arguments}
    models.save_for_hf(model, folder, model_config=config, safe_serialization=True)


FOREIGN: dict[str, Callable[[Path], None]] = {
    "CLIP of transformers": clip_folder,
    "EVA-02 of timm": lambda folder: timm_folder(folder, "eva02_tiny_patch14_224", img_size=56),
    "BEiT of timm, one image size": lambda folder: timm_folder(folder, "beit_base_patch16_224", img_size=96),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_backbone_of_another_library_is_a_teacher(tiny: Tiny, pictures: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "teacher"
    folder.mkdir()
    torch.manual_seed(0)
    FOREIGN[name](folder)
    statistics = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    config = tiny(distill={**FEATURES, **statistics}, run={"steps": 2, "compile": False, "precision": "bfloat16"})
    resolved = resolve_config(config, pictures, teacher=folder)
    model = TrainStep(resolved.config, CPU, teacher=resolved.teacher).model
    batch, backbone = views(), load_backbone(folder, mean=statistics["mean"], std=statistics["std"])
    side = backbone.model.fixed_size or 4 * backbone.patch_size  # the student has a grid of 4 x 4 patches
    sized = torch.nn.functional.interpolate(batch.globals, (side, side), mode="bicubic", antialias=True)
    (wanted,), targets = backbone(sized), model.teacher_logits(batch)
    torch.testing.assert_close(targets["class"].flatten(0, 1), wanted.cls)
    patches = targets["patch"].unflatten(0, (6, 16))
    if side // backbone.patch_size == 4:
        torch.testing.assert_close(patches, wanted.patches)
    else:  # 6 x 6 patches, resized to 4 x 4: the mean of an image stays about the same
        torch.testing.assert_close(patches.mean(1), wanted.patches.mean(1), atol=0.2, rtol=0)
        assert patches.std() > 0.3 * wanted.patches.std()
    assert estimate(resolved.config, CPU, teacher=resolved.teacher).hours > 0
    run = pretrain(config, pictures, tmp_path / "run", device="cpu", teacher=folder)
    student = load_backbone(run.folder)
    assert (student.embed_dim, student.preprocessing.mean) == (16, statistics["mean"])
    assert pretrain(config, pictures, tmp_path / "run", device="cpu", teacher=folder, resume=True).steps == 2


def test_a_dry_run_estimates_a_released_teacher_without_its_weights(tiny: Tiny, pictures: Path) -> None:
    resolved = resolve_config(tiny(distill=FEATURES), pictures, teacher=Path("dinov2_vitb14"), fetch=False)
    assert resolved.teacher is not None
    assert resolved.teacher.backbone.embed_dim == 768
    assert resolved.config.crops.num_local == 0
    costs = estimate(resolved.config, CPU, teacher=resolved.teacher)
    assert costs.head_parameters == (16 + 1) * 768
    assert costs.memory_gib > 80e6 * 4 / 2**30  # the teacher's weights


def test_features_need_a_teacher_and_a_weight(tiny: Tiny, pictures: Path) -> None:
    with pytest.raises(UsageError, match="needs a `teacher`"):
        resolve_config(tiny(distill=FEATURES), pictures)
    with pytest.raises(UsageError, match="set at least one above 0"):
        tiny(distill={**FEATURES, "class_weight": 0, "patch_weight": 0})
