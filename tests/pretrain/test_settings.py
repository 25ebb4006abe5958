"""Settings that trade time for memory do not change the gradients."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinomed.config import flatten_settings
from dinomed.errors import UsageError
from dinomed.layers import packed_attention
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.data.stream import Collate, RawBatch, Sample
from dinomed.pretrain.model.config import ProjectionHeadConfig
from dinomed.pretrain.model.dinov2 import backbone_of, build_side
from dinomed.pretrain.model.distillation import Teacher
from dinomed.pretrain.model.feature_distillation import NO_LOSSES
from dinomed.pretrain.model.heads import ProjectionHead
from dinomed.pretrain.resolve import fit_to_teacher
from dinomed.pretrain.run_folder import FREE_TO_CHANGE, SETTINGS_OF_WEIGHTS, open_run, write_record
from dinomed.pretrain.train_step import TrainStep

Tiny = Callable[..., PretrainConfig]
CudaAutocast = Callable[[], Any]
CPU = torch.device("cpu")


def batch(config: PretrainConfig) -> RawBatch:
    rng = np.random.default_rng(0)
    c, count = config.crops, config.run.batch_size

    def pixels(views: int, size: int) -> np.ndarray:
        return rng.integers(0, 256, (views, size, size, 3), np.uint8)

    samples = [Sample(i, pixels(2, c.global_size), pixels(c.num_local, c.local_size), str(i), []) for i in range(count)]
    side = c.global_size // config.backbone.patch_size
    return Collate(config.masks, (side, side), 0)(samples)


def gradients(config: PretrainConfig) -> dict[str, torch.Tensor]:
    """Return the student's gradients of one step, with the same stochastic depth in every call."""
    train_step = TrainStep(config, CPU)
    train_step.optimizer.take_step = lambda _scaler: None  # type: ignore[method-assign]  # the gradients stay
    assert train_step.run(batch(config), 2).finite
    return {name: p.grad for name, p in train_step.model.student.named_parameters() if p.grad is not None}


def assert_close(actual: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float) -> None:
    assert actual.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(actual[name], gradient, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m)


def test_checkpointed_activations_give_the_same_gradients(tiny: Tiny) -> None:
    wanted = gradients(tiny())
    assert len(wanted) > 30
    actual = gradients(tiny(run={"checkpoint_activations": True}))
    assert_close(actual, wanted, 1e-6)  # the same operations on the same numbers; sums may be ordered otherwise


def test_checkpointing_recomputes_every_block(tiny: Tiny) -> None:
    calls = []
    for setting in (False, True):
        config = tiny(run={"checkpoint_activations": setting})
        train_step, count = TrainStep(config, CPU), [0]
        for block in backbone_of(train_step.model.student).blocks:
            block.norm1.register_forward_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        train_step.run(batch(config), 2)
        calls.append(count[0])
    assert calls == [2, 4]


@pytest.mark.long  # a compiler runs
def test_compiled_blocks_give_the_same_gradients(tiny: Tiny) -> None:
    probe = torch.compile(lambda x: (x * 2).sin())
    try:
        probe(torch.ones(3))
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {type(error).__name__}")
    # Without KoLeo, whose gradient is one over the distance of tokens that a random model hardly tells apart: with it
    # the rounding of float32 (2e-7 of a gradient here) becomes 2e-3.
    changes = {"backbone": {"drop_path": 0.0}, "optimizer": {"clip_norm": 1e6}, "objective": {"koleo_weight": 0.0}}
    wanted = gradients(tiny(**changes))
    actual = gradients(tiny(**changes, run={"compile": True}))
    # float32, fused and in another order
    assert_close({name.replace("_orig_mod.", ""): g for name, g in actual.items()}, wanted, 1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_compiled_block_is_one_graph(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """It broke at the choice of the kernel of attention: 9 to 13 graphs a block, until the limit of recompilations."""
    compile_module = torch.nn.Module.compile

    def compile_whole(module: torch.nn.Module) -> None:
        compile_module(module, backend="eager", fullgraph=True)  # an error at a break of the graph

    monkeypatch.setattr(torch.nn.Module, "compile", compile_whole)
    packed_attention._choose_kernel.cache_clear()
    config = tiny(run={"compile": True, "precision": precision})
    train_step = TrainStep(config, CPU)
    for step in (2, 3):
        assert train_step.run(batch(config), step).finite


def test_koleo_of_both_views_or_of_the_first(tiny: Tiny) -> None:
    from dinomed.pretrain.losses.koleo import koleo_loss

    config = tiny()
    for views, wanted in (("both", lambda a, b: koleo_loss(a) + koleo_loss(b)), ("first", lambda a, b: koleo_loss(a))):
        model = copy.deepcopy(TrainStep(tiny(objective={"koleo_views": views}), CPU).model)
        tokens = torch.randn(2, config.run.batch_size, 16, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(model.koleo_loss(tokens), wanted(*tokens))


@pytest.mark.parametrize("changes", [{"optimizer": {"matrices": "muon"}}, {"objective": {"queue": 8}}], ids=str)
def test_settings_for_one_process_are_refused_with_several(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    monkeypatch.setattr("dinomed.pretrain.train_step.is_distributed", lambda: True)
    with pytest.raises(UsageError, match="works with one process only"):
        TrainStep(tiny(**changes), CPU)


def run_as_on_cuda(cuda_autocast: CudaAutocast, config: PretrainConfig, teacher: Teacher | None = None) -> None:
    with cuda_autocast():
        report = TrainStep(config, CPU, teacher=teacher).run(batch(config), 2)
    assert report.finite
    assert all(norm > 0 for norm in report.gradient_norms.values())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"run": {"micro_batch": 2}},
        {"objective": {"pixel_weight": 1.0, "predictor_depth": 1},
         "masks": {"shape": "random", "probability": 1.0, "ratio": [0.75, 0.75]}},
        {"objective": {"targets": "centering", "untied_heads": False, "gram_weight": 2.0, "gram_start": 0.0}},
        {"objective": {"pixel_weight": 1.0, "pixel_target": "hog", "queue": 8}},
        {"tune": {"lora": {"rank": 2}}},
    ],
    ids=str,
)  # fmt: skip
def test_half_precision_works_with_the_autocast_of_cuda(
    tiny: Tiny, cuda_autocast: CudaAutocast, changes: dict[str, Any]
) -> None:
    """On CUDA the first backward pass of `run.precision=bfloat16` failed in the last layer of the heads."""
    config = tiny(**changes)
    run_as_on_cuda(
        cuda_autocast, config.model_copy(update={"run": config.run.model_copy(update={"precision": "bfloat16"})})
    )


@pytest.mark.parametrize("method", ["heads", "features"])
def test_a_distillation_in_half_precision_works_with_the_autocast_of_cuda(
    tiny: Tiny, cuda_autocast: CudaAutocast, method: str
) -> None:
    large = tiny(backbone={"embed_dim": 32})
    objective = large.objective if method == "heads" else NO_LOSSES
    weights = build_side(large.backbone, objective).state_dict()
    teacher = Teacher(large.backbone, objective, large.preprocessing, weights)
    config = tiny(run={"precision": "bfloat16"}, distill={"method": method})
    run_as_on_cuda(cuda_autocast, fit_to_teacher(config, teacher), teacher)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_head_with_the_autocast_of_cuda_has_the_gradients_of_float32(
    half: torch.dtype, cuda_autocast: CudaAutocast
) -> None:
    torch.manual_seed(0)
    head = ProjectionHead(12, ProjectionHeadConfig(prototypes=9, hidden=8, bottleneck=6))
    x, upstream = torch.randn(5, 12, requires_grad=True), torch.randn(5, 9)
    wanted = torch.autograd.grad((head(x) * upstream).sum(), [x, *head.parameters()])
    with cuda_autocast(), torch.autocast("cpu", half):
        logits = head(x)
    assert logits.dtype == half
    actual = torch.autograd.grad((logits.float() * upstream).sum(), [x, *head.parameters()])
    for gradient, exact in zip(actual, wanted, strict=True):
        assert gradient.dtype == torch.float32
        # three layers, each with products of values that are rounded to 8 bits
        torch.testing.assert_close(gradient, exact, rtol=0, atol=0.02 * float(exact.abs().max()))


def test_statistics_of_values_up_to_255_are_refused(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="divide values of 0 to 255 by 255"):
        tiny(mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4])


def test_the_rules_of_a_resume_name_settings_that_exist() -> None:
    names = flatten_settings(PretrainConfig()).keys()
    assert names >= FREE_TO_CHANGE
    assert [start for start in SETTINGS_OF_WEIGHTS if not any(name.startswith(start) for name in names)] == []


@pytest.mark.parametrize(
    ("changes", "named", "from_weights"),
    [
        ({"objective": {"dino_head": {"prototypes": 32}}}, "objective.dino_head.prototypes: 24 -> 32", False),
        ({"objective": {"ibot_head": {"prototype_init": "truncated_normal"}}}, "ibot_head.prototype_init", False),
        ({"run": {"pca_images": 3}}, "run.pca_images: 2 -> 3", True),  # without splits they are taken from train
    ],
)
def test_a_resume_with_another_setting_names_it_and_a_remedy_that_works(
    changes: dict[str, Any], named: str, from_weights: bool, tiny: Tiny, tmp_path: Path
) -> None:
    """With `--from` the heads have the shapes and the weights of the run, so no other head would be trained."""
    data = {"fingerprint": "f", "images": 8}
    write_record(tmp_path, tiny(), data)
    with pytest.raises(UsageError, match="has other settings") as refusal:
        open_run(tmp_path, tiny(**changes), data, resume=True, overwrite=False)
    assert named in str(refusal.value)
    assert ("--from" in str(refusal.value)) is from_weights
