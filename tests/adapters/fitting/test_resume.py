"""Interrupted fits, which are resumed and end with the same result."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dinomed.adapters.bundle import STAGE, read_record
from dinomed.adapters.fit import fit_head
from dinomed.adapters.fitting import head_fit, loop, optimizers, resume
from dinomed.adapters.fitting.config import FitConfig
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import read_manifest
from dinomed.progress import bar

FIT = {"epochs": 4, "patience": 4, "batch_size": 16, "min_steps": 0}
SEGMENT: dict[str, Any] = {"head": {"name": "dpt", "channels": 8}, "image_size": 48, "fit": FIT}  # it has dropout
CASES: dict[str, Any] = {
    "dpt": SegmentConfig.model_validate(SEGMENT),
    "lbfgs": ClassifyConfig.model_validate({"fit": {"epochs": 4, "patience": 4, "optimizer": "lbfgs"}}),
    "augmented": SegmentConfig.model_validate({**SEGMENT, "augment": "dermoscopy"}),
    "windows": SegmentConfig.model_validate(
        {**SEGMENT, "image_size": 32, "window": 24, "crop": 0.5, "augment": "light"}
    ),
    "last": SegmentConfig.model_validate({**SEGMENT, "tune": "last:1", "augment": "light"}),
    "lora": ClassifyConfig.model_validate({"fit": FIT, "tune": {"lora": {"rank": 2, "dropout": 0.2}}}),
}


@pytest.mark.parametrize(
    "case", [case if case in ("augmented", "lbfgs") else pytest.param(case, marks=pytest.mark.long) for case in CASES]
)
def test_an_interrupted_fit_ends_with_the_weights_of_an_uninterrupted_fit(
    case: str, tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if case == "lora":
        pytest.importorskip("peft")
    config = CASES[case]
    monkeypatch.setattr(resume, "MAX_TIME_SHARE", 1.0)  # after every epoch
    data: dict[str, Any] = {"manifest": read_manifest(lesion_manifest), "cache": tmp_path / "cache", "config": config}
    whole = fit_head(load_backbone(tiny_backbone), out=tmp_path / "whole", **data).folder
    keep = loop._Fit.save

    def cut(self: Any) -> None:
        keep(self)
        if self.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Fit, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            fit_head(load_backbone(tiny_backbone), out=tmp_path / "cut", **data)
    assert "the same command resumes after epoch 2" in capsys.readouterr().err
    torch.rand(3)  # what came before must not matter
    again = fit_head(load_backbone(tiny_backbone), out=tmp_path / "cut", **data).folder
    assert "resuming after epoch 2 of an interrupted training" in capsys.readouterr().err
    assert read_record(again).weights_sha256 == read_record(whole).weights_sha256
    logs = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (whole, again)]
    assert [row.pop("seconds") for row in logs[0]] != []
    assert all(row.pop("seconds") > 0 for row in logs[1])
    assert logs[0] == logs[1]
    assert len(logs[0]) == 4
    assert not (again / STAGE).exists()


def test_the_counter_of_a_resumed_fit_with_seconds_begins_at_the_steps_that_were_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "MAX_TIME_SHARE", 1.0)
    monkeypatch.setattr(optimizers, "process_time", iter(range(10**6)).__next__)
    config, starts, losses = FitConfig(epochs=3, patience=3, batch_size=2, seconds=100), list[int](), list[float]()
    done: list[int] = []  # steps before each validation

    def counted(description: str, total: int | None, start: int = 0) -> Any:
        starts.append(start)
        return bar(description, total, start)

    def loss(_: Any) -> torch.Tensor:
        losses.append(0.0)
        return model(torch.ones(1, 1)).square().sum()

    def validate() -> tuple[float, dict[str, float]]:
        done.append(len(losses))
        if len(done) == 2:
            raise KeyboardInterrupt
        return 0.0, {"score": 0.0}

    monkeypatch.setattr(loop, "bar", counted)
    model = torch.nn.Linear(1, 1)
    arguments: dict[str, Any] = {
        "count": 4, "batches": iter, "batch_loss": loss, "validate": validate, "seed": 0, "folder": tmp_path,
        "key": "k", "description": "training",
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        loop.run_epochs(model, config, **arguments)
    loop.run_epochs(model, config, **arguments)
    assert starts == [0, done[0]]


def test_a_state_of_another_format_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = SimpleNamespace(table=SimpleNamespace(to_pydict=dict))
    arguments: Any = (
        ClassifyConfig(), SimpleNamespace(train=rows, val=rows),
        SimpleNamespace(device=torch.device("cpu"), fingerprint="f"),
    )  # fmt: skip
    before = head_fit.fit_key(*arguments)
    assert head_fit.fit_key(*arguments) == before
    monkeypatch.setattr(head_fit, "STATE_FORMAT", head_fit.STATE_FORMAT - 1)
    assert head_fit.fit_key(*arguments) != before


def test_a_fit_stopped_before_its_first_saved_epoch_reports_that_it_starts_again(
    tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def stop(self: Any, *_: Any) -> None:
        raise KeyboardInterrupt

    config = CASES["lbfgs"]
    monkeypatch.setattr(loop._Fit, "end_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        fit_head(
            load_backbone(tiny_backbone), read_manifest(lesion_manifest), tmp_path / "c", config, cache=tmp_path / "s"
        )
    assert "in epoch 1; the same command starts again" in capsys.readouterr().err


def test_a_damaged_state_or_one_of_other_settings_or_data_is_not_used(
    tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = CASES["lbfgs"]
    monkeypatch.setattr(resume, "MAX_TIME_SHARE", 1.0)
    manifest, backbone = read_manifest(lesion_manifest), load_backbone(tiny_backbone)
    keep = loop._Fit.save

    def cut(self: Any) -> None:
        keep(self)
        raise SystemExit(143)

    def leave_a_state() -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(loop._Fit, "save", cut)
            with pytest.raises(SystemExit):
                fit_head(backbone, manifest, tmp_path / "cut", config, cache=tmp_path / "cache")
        assert "resumes after epoch" in capsys.readouterr().err
        return next((tmp_path / "cut" / STAGE / "state").glob("step_*"))

    leave_a_state()
    other_seed = config.model_copy(update={"seed": 5})
    fit_head(backbone, manifest, tmp_path / "cut", other_seed, cache=tmp_path / "cache")
    assert "other settings, data or backbone is removed" in capsys.readouterr().err
    fresh = fit_head(backbone, manifest, tmp_path / "fresh", other_seed, cache=tmp_path / "cache").folder
    assert read_record(fresh).weights_sha256 == read_record(tmp_path / "cut").weights_sha256
    for path in (tmp_path / "cut").glob("*"):
        path.unlink()
    tensors = leave_a_state() / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-7])
    fit_head(backbone, manifest, tmp_path / "cut", config, cache=tmp_path / "cache")
    assert "damaged" in capsys.readouterr().err


@pytest.mark.long
def test_a_killed_command_is_resumed_and_a_terminated_command_prints_how_to_resume(
    tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path
) -> None:
    settings = {"head.channels": 8, "image_size": 48, "fit.epochs": 30, "fit.patience": 30, "fit.min_steps": 0}
    sets = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]

    def command(out: str) -> list[str]:
        return [
            sys.executable, "-m", "dinomed", "train", "segment", "--head", "dpt", "--backbone",
            str(tiny_backbone), "--data", str(lesion_manifest), "--cache", str(tmp_path / "cache"), "--device", "cpu",
            "-o", str(tmp_path / out), *sets,
        ]  # fmt: skip

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command("whole"), env=environment, check=True, capture_output=True)
    state = tmp_path / "cut" / STAGE / "state"
    process = subprocess.Popen(command("cut"), env=environment, stderr=subprocess.DEVNULL)
    while not list(state.glob("step_*")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = subprocess.Popen(command("cut"), env=environment, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        errors = ""
        while "resuming after epoch" not in errors and (line := process.stderr.readline()):
            errors += line
        process.send_signal(number)
        errors += process.stderr.read()
        assert process.wait() == code, errors
        assert "the same command resumes after epoch" in errors
        assert "Traceback" not in errors
    done = subprocess.run(command("cut"), env=environment, check=True, capture_output=True, text=True)
    assert "resuming after epoch" in done.stderr
    hashes = {read_record(tmp_path / name).weights_sha256 for name in ("whole", "cut")}
    assert len(hashes) == 1
