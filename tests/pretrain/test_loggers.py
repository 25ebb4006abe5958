"""Loggers of a pretraining run that was interrupted and resumed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dinomed.errors import UsageError
from dinomed.loggers import names
from dinomed.loggers.logger import RunLogger
from dinomed.loggers.tensorboard_files import TensorBoardFiles
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.train_step import TrainStep
from dinomed.pretrain.trainer import pretrain

Tiny = Callable[..., PretrainConfig]


def test_a_resumed_run_continues_its_loggers_without_a_repeated_step(
    tiny: Tiny, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_step = TrainStep.run

    def stop(self: TrainStep, raw: Any, step: int) -> Any:
        if step == 5:
            raise KeyboardInterrupt
        return run_step(self, raw, step)

    out = tmp_path / "run"
    closed: list[RunLogger] = []
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "run", stop)
        patch.setattr(TensorBoardFiles, "close", lambda self: closed.append(self))
        with pytest.raises(KeyboardInterrupt):
            pretrain(tiny(), pictures, out, device="cpu")
    lines = (out / "log.jsonl").read_text().splitlines()
    assert len(closed) == 1  # also after an error
    assert json.loads(lines[-1])["step"] == 5  # after the checkpoint of step 4
    pretrain(tiny(), pictures, out, device="cpu", resume=True)
    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    assert [event.step for event in events.Images("pca")] == [2, 4, 6]
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for name, steps in (("loss", [1, 2, 3, 4, 5, 6]), ("knn_auroc", [0, 2, 4, 6]), ("lr", [1, 2, 3, 4, 5, 6])):
        scalars = events.Scalars(name)
        assert [event.step for event in scalars] == steps
        # float32 in the file of TensorBoard
        assert [e.value for e in scalars] == pytest.approx([line[name] for line in logged if name in line], rel=1e-6)


def test_a_logger_that_is_added_on_a_resume_gets_the_whole_log(
    tiny: Tiny, pictures: Path, tmp_path: Path, tensorboard_scalars: Callable[[Path, str], list[tuple[int, float]]]
) -> None:
    out = tmp_path / "run"
    pretrain(tiny(run={"loggers": ["jsonl"]}), pictures, out, device="cpu")
    assert not (out / "tensorboard").exists()
    pretrain(tiny(run={"loggers": ["tensorboard"]}), pictures, out, device="cpu", resume=True)
    assert [step for step, _ in tensorboard_scalars(out, "loss")] == [1, 2, 3, 4, 5, 6]


def test_a_missing_package_ends_a_run_before_it_begins(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "find_spec", lambda module: None)
    with pytest.raises(UsageError, match=r"run\.loggers=wandb needs the package wandb: pip install"):
        pretrain(tiny(run={"loggers": ["wandb"]}), tmp_path / "no_data", tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
