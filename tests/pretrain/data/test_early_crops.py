"""Smaller crops in the first part of a run (`crops.early`)."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dinomed.errors import UsageError
from dinomed.pretrain.config import PretrainConfig, to_high_resolution
from dinomed.pretrain.data.stream import RawBatch
from dinomed.pretrain.monitoring.cost_estimate import estimate
from dinomed.pretrain.resolve import resolve_config
from dinomed.pretrain.train_step import StepReport, TrainStep
from dinomed.pretrain.trainer import Trainer, pretrain

Tiny = Callable[..., PretrainConfig]
EARLY = {"early": {"fraction": 0.5, "global_size": 16, "local_size": 8}}  # 3 of 6 steps


def test_the_crops_grow_at_the_fraction_of_the_run(tiny: Tiny, pictures: Path, tmp_path: Path) -> None:
    resolved = resolve_config(tiny(crops=EARLY), pictures)
    trainer = Trainer(resolved, tmp_path, torch.device("cpu"))
    batches = list(trainer._batches(0))
    assert [batch.globals.shape[1] for batch in batches] == [16] * 3 + [32] * 3
    assert [batch.locals.shape[1] for batch in batches] == [8] * 3 + [16] * 3
    assert [batch.masks.shape[1] for batch in batches] == [4] * 3 + [16] * 3
    later = list(trainer._batches(2))  # a resumed run reads the same
    assert all(torch.equal(a.globals, b.globals) for a, b in zip(batches[2:], later, strict=True))
    # the crops of the second part are those of a run without a first part
    plain = list(Trainer(resolve_config(tiny(), pictures), tmp_path, torch.device("cpu"))._batches(3))
    assert all(torch.equal(a.globals, b.globals) for a, b in zip(batches[3:], plain, strict=True))


@pytest.mark.parametrize("last_step", [2, pytest.param(4, marks=pytest.mark.long)])  # within each part
def test_a_run_with_both_parts_resumes_exactly(
    tiny: Tiny, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_step: int
) -> None:
    whole = pretrain(tiny(crops=EARLY), pictures, tmp_path / "whole", device="cpu")
    cut, run_step = tmp_path / "cut", TrainStep.run

    def fail(train_step: TrainStep, raw: RawBatch, step: int) -> StepReport:
        if step == last_step:
            raise KeyboardInterrupt
        return run_step(train_step, raw, step)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "run", fail)
        with pytest.raises(KeyboardInterrupt):
            pretrain(tiny(crops=EARLY), pictures, cut, device="cpu")
    pretrain(tiny(crops=EARLY), pictures, cut, device="cpu", resume=True)
    first, second = (load_file(path / "backbone" / "model.safetensors") for path in (whole.folder, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_estimate_is_the_mean_over_both_parts(tiny: Tiny) -> None:
    small = {"global_size": 16, "local_size": 8}
    cpu = torch.device("cpu")
    large, early, both = (estimate(tiny(crops=crops), cpu).teraflop_per_step for crops in ({}, small, EARLY))
    assert early < large
    assert both == pytest.approx((large + early) / 2)


def test_early_sizes_must_be_whole_patches_and_end_with_the_phase(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match=r"crops\.early\.global_size 20 is not divisible by the patch size 8"):
        tiny(crops={"early": {"global_size": 20, "local_size": 8}})
    assert to_high_resolution(tiny(crops=EARLY), 64).crops.early is None
