"""Settings that trade time for memory do not change the gradients."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dinomed.errors import UsageError
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.data.stream import Collate, RawBatch, Sample
from dinomed.pretrain.model.dinov2 import backbone_of
from dinomed.pretrain.train_step import TrainStep

Tiny = Callable[..., PretrainConfig]
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
