"""Student, teacher, losses, views, masks and parameter groups."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from dinomed.errors import UsageError
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.data.config import CropConfig
from dinomed.pretrain.data.crops import MultiCrop
from dinomed.pretrain.data.masking import MaskConfig, sample_masks
from dinomed.pretrain.model.dinov2 import DINOv2, ViewBatch
from dinomed.pretrain.optim.config import OptimizerConfig
from dinomed.pretrain.optim.optimizer import parameter_groups
from dinomed.pretrain.optim.schedules import Schedule

Tiny = Callable[..., PretrainConfig]


def batch(config: PretrainConfig, images: int = 4) -> ViewBatch:
    generator = torch.Generator().manual_seed(0)
    side = config.crops.global_size // config.backbone.patch_size
    masks = torch.from_numpy(sample_masks(2 * images, (side, side), config.masks, (0,)))
    counts = masks.sum(1, keepdim=True).clamp_min(1)
    return ViewBatch(
        torch.randn(2 * images, 3, config.crops.global_size, config.crops.global_size, generator=generator),
        torch.randn(2 * images, 3, config.crops.local_size, config.crops.local_size, generator=generator),
        masks, masks.flatten().nonzero().flatten(), (1.0 / counts).expand_as(masks)[masks],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("objective", "terms"),
    [
        ({}, {"dino", "ibot", "koleo"}),
        ({"dino_weight": 0}, {"ibot", "koleo"}),  # defect 4: the reference cannot
        ({"ibot_weight": 0}, {"dino", "koleo"}),
        ({"dino_weight": 0, "ibot_weight": 0}, {"koleo"}),
        ({"koleo_weight": 0, "untied_heads": False}, {"dino", "ibot"}),
        ({"targets": "centering"}, {"dino", "ibot", "koleo"}),
    ],
)
def test_every_loss_works_without_the_others(tiny: Tiny, objective: dict[str, object], terms: set[str]) -> None:
    config = tiny(objective=objective)
    torch.manual_seed(0)
    model = DINOv2(config.backbone, config.objective).train()
    losses = model(batch(config), 0.04)
    losses.total.backward()
    assert losses.terms.keys() == terms
    assert torch.isfinite(losses.total)
    assert all(p.grad is None for p in model.teacher.parameters())


def test_the_teacher_is_the_moving_average_of_the_student(tiny: Tiny) -> None:
    config = tiny()
    model = DINOv2(config.backbone, config.objective)
    before = {k: v.clone() for k, v in model.teacher.state_dict().items()}
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1.0)
    model.update_teacher(0.75)
    for key, value in model.teacher.state_dict().items():
        torch.testing.assert_close(value, before[key] + 0.25)


def test_masks_have_the_ratios_of_the_config() -> None:
    masks = sample_masks(64, (16, 16), MaskConfig(), (0,)).mean(1)
    assert (masks == 0).sum() == 32
    assert masks.max() <= 0.5
    assert masks[masks > 0].min() > 0.02
    # bins spread the wanted ratios evenly over 0.1 to 0.5; blocks that do not fit leave some a little below
    assert 0.2 < masks[masks > 0].mean() < 0.35


def test_a_mask_depends_on_its_row_and_the_seed_only() -> None:
    whole = sample_masks(16, (8, 8), MaskConfig(), (3, 1))
    some = sample_masks(16, (8, 8), MaskConfig(), (3, 1), rows=[5, 2, 15])
    assert np.array_equal(some, whole[[5, 2, 15]])
    assert not np.array_equal(whole, sample_masks(16, (8, 8), MaskConfig(), (3, 2)))


def test_crops_depend_on_their_seed_only() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    crops = MultiCrop(CropConfig(global_size=32, local_size=16, num_local=3, blur_kernel=3))
    first = crops(image, 5)
    crops(image, 6)
    again = crops(image, 5)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], crops(image, 6)[0])
    assert first[0].shape == (2, 32, 32, 3)
    assert first[1].shape == (3, 16, 16, 3)


def test_blur_follows_the_paper_or_the_released_code() -> None:
    assert CropConfig().blur_probabilities() == (1.0, 0.1, 0.5)  # defect 1
    assert CropConfig(blur="released").blur_probabilities() == (0.0, 0.9, 0.5)
    checks = np.indices((64, 64)).sum(0)[..., None].repeat(3, 2) % 2 * 255
    sharp = {"jitter_probability": 0, "gray_probability": 0, "solarize_probability": 0, "global_scale": (1, 1)}
    first = {}
    for blur in ("paper", "released"):
        crops = MultiCrop(CropConfig(global_size=64, local_size=16, num_local=0, blur=blur, blur_sigma=(2, 2), **sharp))
        first[blur] = np.mean([crops(checks.astype(np.uint8), seed)[0][0].std() for seed in range(8)])
    assert first["paper"] < 0.5 * first["released"]  # the first global view is always, or never, blurred


def test_schedules_have_their_start_peak_and_end() -> None:
    schedule = Schedule(start=0.0, peak=1.0, end=0.1, warmup=0.2)
    assert schedule(0, 100) == 0
    assert schedule(10, 100) == pytest.approx(0.5)
    assert schedule(20, 100) == pytest.approx(1.0)
    assert schedule(100, 100) == pytest.approx(0.1)


def test_one_dimensional_parameters_have_no_weight_decay_and_layers_decay(tiny: Tiny) -> None:
    config = tiny()
    model = DINOv2(config.backbone, config.objective)
    names = {id(p): n for n, p in model.student.named_parameters()}
    groups = list(parameter_groups(model.student, OptimizerConfig(layer_decay=0.5)))
    group_of = {names[id(p)]: group for group in groups for p in group["params"]}
    assert group_of.keys() == set(names.values())
    assert group_of["backbone.blocks.0.norm1.weight"]["decay_factor"] == 0
    assert group_of["backbone.blocks.0.attn.qkv.weight"] | {"params": 0} == {
        "params": 0, "lr_factor": 0.25, "decay_factor": 1.0, "kind": "backbone", "optimizer": "adamw",
    }  # fmt: skip
    assert group_of["backbone.patch_embed.proj.weight"]["lr_factor"] == pytest.approx(0.5**3 * 0.2)
    assert group_of["dino_head.prototypes"]["kind"] == "prototypes"
    # as in the reference code, the norms have weight decay and wait with the prototypes
    assert group_of["dino_head.prototype_norms"]["kind"] == "prototypes"
    assert group_of["dino_head.prototype_norms"]["decay_factor"] == 1
    assert group_of["backbone.mask_token"]["kind"] == "other"


def test_impossible_settings_are_refused(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="not divisible by the patch size"):
        tiny(crops={"local_size": 20})
    with pytest.raises(UsageError, match="did you mean 'embed_dim'"):
        tiny(backbone={"embed_dims": 16})
    with pytest.raises(UsageError, match="all weights of the objective are 0"):
        tiny(objective={"dino_weight": 0, "ibot_weight": 0, "koleo_weight": 0})
