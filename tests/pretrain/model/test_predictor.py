"""An encoder of visible patches only, with a predictor of the masked ones."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dinomed.backbones.load import load_backbone
from dinomed.backbones.vit import VisionTransformer
from dinomed.errors import UsageError
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.data.masking import MaskConfig, sample_masks
from dinomed.pretrain.losses.cross_entropy import ibot_loss
from dinomed.pretrain.model.dinov2 import DINOv2, ViewBatch
from dinomed.pretrain.monitoring.cost_estimate import estimate
from dinomed.pretrain.trainer import pretrain

Tiny = Callable[..., PretrainConfig]
MASKS = {"shape": "random", "probability": 1.0, "ratio": [0.75, 0.75]}


def build(tiny: Tiny) -> tuple[DINOv2, ViewBatch]:
    config = tiny(objective={"predictor_depth": 1}, masks=MASKS, backbone={"drop_path": 0})
    torch.manual_seed(0)
    model = DINOv2(config.backbone, config.objective).train()
    masks = torch.from_numpy(sample_masks(4, (4, 4), config.masks, (0,)))
    weights = torch.full((int(masks.sum()),), 1 / 12)
    views, local = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 16, 16)
    return model, ViewBatch(views, local, masks, masks.flatten().nonzero().flatten(), weights)


def test_random_masks_have_the_exact_number_in_every_view() -> None:
    masks = sample_masks(8, (4, 4), MaskConfig(**MASKS), (0,))
    assert (masks.sum(1) == 12).all()
    assert len({tuple(row) for row in masks.tolist()}) == 8
    assert (masks == sample_masks(8, (4, 4), MaskConfig(**MASKS), (0,))).all()


def test_visible_tokens_are_those_of_a_sequence_without_the_masked_patches(tiny: Tiny) -> None:
    vit = VisionTransformer(tiny().backbone).eval()
    images = torch.randn(2, 3, 32, 32)
    visible = torch.zeros(2, 16, dtype=torch.bool)
    visible[0, [1, 5, 6]], visible[1, [0, 2, 15]] = True, True
    tokens = vit.forward_packed([images], [None], [visible])[0]
    embedded = vit.embed(images)
    for index in range(2):
        rows = [0, 1, *(2 + visible[index].nonzero().flatten())]  # class token, register, patches
        x = embedded[index : index + 1, [int(row) for row in rows]]
        for block in vit.blocks:
            (x,) = block([x])
        torch.testing.assert_close(tokens.patches[index], vit.norm(x)[0, 2:], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tokens.cls[index], vit.norm(x)[0, 0], rtol=1e-5, atol=1e-5)


def test_the_student_never_reads_the_pixels_of_masked_patches(tiny: Tiny) -> None:
    model, batch = build(tiny)
    tokens = model.student_tokens(batch)
    assert tokens[0].patches.shape == (4, 4, 16)
    hidden = batch.masks.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).expand_as(batch.globals)
    changed = ViewBatch(
        torch.where(hidden, torch.randn_like(batch.globals), batch.globals), batch.locals, batch.masks, batch.masked,
        batch.mask_weights,
    )  # fmt: skip
    assert torch.equal(model.student_tokens(changed)[0].patches, tokens[0].patches)
    assert torch.equal(model._masked_tokens(changed, tokens[0]), model._masked_tokens(batch, tokens[0]))


def test_predictions_are_compared_with_the_teacher_at_the_masked_patches(tiny: Tiny) -> None:
    model, batch = build(tiny)
    losses = model(batch, 0.07)
    with torch.no_grad():
        teacher = model.teacher["backbone"](batch.globals).patches
        targets = model.make_targets({"ibot": model.teacher["ibot_head"](teacher[batch.masks])}, 0.07)["ibot"]
        predicted = model.student["predictor"](model.student_tokens(batch)[0], batch.masks)
        logits = model.student["ibot_head"](predicted.reshape(-1, 16))
        expected = ibot_loss(logits, targets, batch.mask_weights, 4)
    assert float(losses.terms["ibot"]) == pytest.approx(float(expected), rel=1e-5)  # float32
    losses.total.backward()
    assert model.student["predictor"].blocks[0].attn.qkv.weight.grad.abs().max() > 0
    # each prediction depends on the position of its patch
    assert (predicted[0].std(0) > 0).all()


def test_a_run_resumes_exactly_and_the_backbone_is_a_plain_one(
    resumed_equals: Callable[..., bool], tiny: Tiny, pictures: Path, tmp_path: Path
) -> None:
    early = {"early": {"fraction": 0.5, "global_size": 16, "local_size": 8}}
    config = tiny(objective={"predictor_depth": 1}, masks=MASKS, crops=early)
    whole = pretrain(config, pictures, tmp_path / "whole", device="cpu")
    assert load_backbone(whole.folder).embed_dim == 16
    assert resumed_equals(config, whole)
    student = pretrain(tiny(), pictures, tmp_path / "student", device="cpu", teacher=whole.folder)
    assert load_backbone(student.folder).embed_dim == 16


def test_masks_of_other_sizes_are_refused_and_the_estimate_counts_fewer_tokens(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="needs the same number of masked patches"):
        tiny(objective={"predictor_depth": 1})
    cpu = torch.device("cpu")
    visible = estimate(tiny(objective={"predictor_depth": 1}, masks=MASKS, crops={"num_local": 0}), cpu)
    assert visible.tokens_per_image < estimate(tiny(crops={"num_local": 0}), cpu).tokens_per_image
