"""The whole run: exact resume, locking of the run folder, and the errors that end a run."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dinomed.adapters.fitting.augment import AugmentConfig, resolve_augmentation
from dinomed.backbones.load import load_backbone
from dinomed.config import to_yaml
from dinomed.datasets.manifest import build_manifest, read_manifest, write_manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.io.checkpoint import list_checkpoints
from dinomed.io.output_folder import locked
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.train_step import TrainStep
from dinomed.pretrain.trainer import pretrain

Tiny = Callable[..., PretrainConfig]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of the newest checkpoint: student, teacher, optimiser."""
    folder = list_checkpoints(run / "checkpoints")[-1]
    return {f"{p.stem}.{k}": v for p in sorted(folder.glob("*.safetensors")) for k, v in load_file(p).items()}


def assert_same(a: Path, b: Path) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), key  # bit for bit


def logged(run: Path) -> list[tuple[int, float]]:
    """Return the steps of the log, each with its loss or its k-NN AUROC."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss", line.get("knn_auroc"))) for line in lines]


def command(config: Path, data: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "dinomed", "pretrain", str(config), "--data", str(data), "-o", str(out),
            "--device", "cpu", *options]  # fmt: skip


def test_a_run_writes_all_files_that_other_commands_need(tiny: Tiny, pictures: Path, tmp_path: Path) -> None:
    result = pretrain(tiny(crops={"modality": "xray"}), pictures, tmp_path / "run", device="cpu")
    lines = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == [1, 2, 3, 4, 5, 6]
    measured = {"loss", "dino", "ibot", "koleo", "target_information", "dino_kl", "prototypes_used", "rank", "lr"}
    assert measured <= trained[-1].keys()
    assert [line["step"] for line in lines if "knn_auroc" in line] == [0, 2, 4, 6]
    assert result.energy["kwh"] > 0
    assert len(list_checkpoints(result.folder / "checkpoints")) == 2
    assert list((result.folder / "pca").glob("*.png"))
    last, untrained = load_backbone(result.folder), load_backbone(result.folder / "untrained")
    assert last.fingerprint != untrained.fingerprint
    assert last.preprocessing.image_size == 32
    for backbone in (last, untrained):  # heads on it are augmented as the run was
        assert resolve_augmentation(AugmentConfig(preset="auto"), read_manifest(pictures), backbone).preset == "xray"


@pytest.mark.long
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tiny: Tiny, pictures: Path, tmp_path: Path
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(to_yaml(tiny(run={"steps": 30, "checkpoint_every": 3, "workers": 1})))
    subprocess.run(command(config, pictures, tmp_path / "whole"), check=True, capture_output=True)
    process = subprocess.Popen(command(config, pictures, tmp_path / "cut"), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300  # a busy machine takes minutes to import torch
    while len(list_checkpoints(tmp_path / "cut" / "checkpoints")) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert int(list_checkpoints(tmp_path / "cut" / "checkpoints")[-1].name[5:]) < 30, "killed too late to test anything"
    subprocess.run(command(config, pictures, tmp_path / "cut", "--resume"), check=True, capture_output=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")
    assert logged(tmp_path / "whole") == logged(tmp_path / "cut")


def of_session(session: int) -> list[str]:
    """Return the running processes of a session, by /proc; ended ones that nobody has waited for are left out."""
    states = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ends meanwhile
            name, _, fields = path.read_text().rpartition(")")
            state, _, _, owner, *_ = fields.split()
            if int(owner) == session and state != "Z":
                states.append(f"{name}) {state}")
    return states


def run_until_signals(process: subprocess.Popen[str], run: Path, send: Callable[[], None]) -> str:
    """Wait for the first line of the log and its two data workers, send signals, wait for the end; return stderr.

    No process of the session remains.
    """
    deadline = time.monotonic() + 300  # a busy machine takes minutes to import torch
    while not (run / "log.jsonl").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    while len(of_session(process.pid)) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    send()
    _, errors = process.communicate(timeout=300)
    deadline = time.monotonic() + 30  # a worker looks every 5 seconds whether the trainer has ended
    while (left := of_session(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    assert "Traceback" not in errors
    return errors


SIGNALS = pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
on_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are listed by /proc")


@pytest.fixture
def endless(tiny: Tiny, pictures: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run of many steps with two data workers, in a session of its own, that writes to `tmp_path` / run."""
    config = tmp_path / "tiny.yaml"
    config.write_text(to_yaml(tiny(run={"steps": 100_000, "checkpoint_every": 100_000, "workers": 2})))
    words = command(config, pictures, tmp_path / "run")
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        yield process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.long
@on_proc
@SIGNALS
def test_a_signal_stops_the_run_after_the_step_with_a_checkpoint(
    endless: subprocess.Popen[str], tmp_path: Path, number: int, code: int
) -> None:
    to_all = lambda: os.killpg(endless.pid, number)  # to the workers too, as a terminal or a scheduler does
    errors = run_until_signals(endless, tmp_path / "run", to_all)
    assert endless.returncode == code, errors
    assert list_checkpoints(tmp_path / "run" / "checkpoints")
    assert "--resume" in errors


@pytest.mark.long
@on_proc
@SIGNALS
def test_a_second_signal_ends_the_run_and_its_data_workers(
    endless: subprocess.Popen[str], tmp_path: Path, number: int, code: int
) -> None:
    def to_the_trainer_twice() -> None:
        for _ in range(2):
            endless.send_signal(number)
            time.sleep(0.01)  # equal signals that wait together are one

    errors = run_until_signals(endless, tmp_path / "run", to_the_trainer_twice)
    assert endless.returncode == code, errors


def test_a_truncated_checkpoint_is_skipped_with_a_warning(
    finished: Path, finished_copy: Path, tiny: Tiny, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = list_checkpoints(finished_copy / "checkpoints")[-1] / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    pretrain(tiny(), pictures, finished_copy, device="cpu", resume=True)
    assert "damaged" in capsys.readouterr().err
    assert_same(finished, finished_copy)


def test_a_resume_with_other_settings_or_images_is_refused(finished_copy: Path, tiny: Tiny, pictures: Path) -> None:
    with pytest.raises(UsageError, match=r"optimizer\.lr: 0\.001 -> 0\.002"):
        pretrain(tiny(optimizer={"lr": 2e-3}), pictures, finished_copy, device="cpu", resume=True)
    with pytest.raises(UsageError, match=f"another folder.* --from {re.escape(str(finished_copy))} -o"):
        pretrain(tiny(run={"steps": 1000}), pictures, finished_copy, device="cpu", resume=True)
    with pytest.raises(UsageError, match="use `resume=True`"):
        pretrain(tiny(), pictures, finished_copy, device="cpu")


def test_two_runs_cannot_share_a_folder(tiny: Tiny, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    with locked(tmp_path / "run"), pytest.raises(DinomedError, match="in use"):
        pretrain(tiny(), pictures, tmp_path / "run", device="cpu", overwrite=True)


def test_a_folder_with_other_files_is_refused_and_unchanged(tiny: Tiny, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"):
        pretrain(tiny(), pictures, tmp_path, device="cpu", overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_images(
    tiny: Tiny, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dinomed.pretrain.model import dinov2 as method

    monkeypatch.setattr(method, "koleo_loss", lambda x, _: x.sum() * float("nan"))
    with pytest.raises(DinomedError, match=r"bad_batch\.json"):
        pretrain(tiny(run={"max_bad_steps": 1}), pictures, tmp_path / "run", device="cpu")
    assert len(json.loads((tmp_path / "run" / "bad_batch.json").read_text())["images"]) == 4


def test_a_step_whose_loss_is_not_finite_changes_no_weight(
    tiny: Tiny, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dinomed.pretrain.model import dinov2 as method

    loss, run, changed = method.koleo_loss, TrainStep.run, list[set[str]]()
    step = 0

    def tensors(train_step: TrainStep) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in train_step.model.state_dict().items()}

    def compare(train_step: TrainStep, raw: Any, number: int) -> Any:
        nonlocal step
        step, before = number, tensors(train_step)
        report, after = run(train_step, raw, number), tensors(train_step)
        changed.append({name.split(".")[0] for name in after if not torch.equal(before[name], after[name])})
        return report

    monkeypatch.setattr(TrainStep, "run", compare)
    monkeypatch.setattr(
        method, "koleo_loss", lambda x, *given: x.sum() * float("nan") if step == 1 else loss(x, *given)
    )
    pretrain(tiny(run={"steps": 3, "max_bad_steps": 1}), pictures, tmp_path / "run", device="cpu")
    assert changed == [{"student", "teacher"}, set(), {"student", "teacher"}]


def test_a_skipped_step_at_a_checkpoint_does_not_end_the_run(
    tiny: Tiny, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TrainStep.run

    def overflow(train_step: TrainStep, raw: Any, number: int) -> Any:
        if number == 1:
            object.__setattr__(raw, "globals", torch.full(raw.globals.shape, torch.nan))
        return whole(train_step, raw, number)

    monkeypatch.setattr(TrainStep, "run", overflow)
    out = tmp_path / "run"
    out.mkdir()
    config = tiny(run={"steps": 3, "checkpoint_every": 2, "max_bad_steps": 1})
    (out / "config.yaml").write_text("")
    (out / "bad_batch.json").write_text("{}")
    assert pretrain(config, pictures, out, device="cpu", overwrite=True).steps == 3
    assert [path.name for path in list_checkpoints(out / "checkpoints")] == ["step_00000002", "step_00000003"]
    assert not (out / "bad_batch.json").exists()  # of the run that was replaced


def test_gradients_that_are_never_finite_end_a_run_in_float16_too(
    tiny: Tiny, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scaler begins with 65,536 and halves its scale 16 times; then the steps count as skipped."""
    monkeypatch.setattr(TrainStep, "_backward", lambda self, loss: (self.scaler.scale(loss) * torch.inf).backward())
    steps, whole = list[bool](), TrainStep.run

    def count(train_step: TrainStep, raw: Any, number: int) -> Any:
        report = whole(train_step, raw, number)
        steps.append(report.finite)
        return report

    monkeypatch.setattr(TrainStep, "run", count)
    config = tiny(run={"steps": 40, "checkpoint_every": 100, "max_bad_steps": 1, "precision": "float16"})
    with pytest.raises(DinomedError, match="the loss was not finite in 2 steps in a row"):
        pretrain(config, pictures, tmp_path / "run", device="cpu")
    assert steps == [True] * 16 + [False] * 2


def test_fewer_images_than_a_batch_are_refused(tiny: Tiny, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fewer than a batch"):
        pretrain(tiny(run={"batch_size": 4096}), pictures, tmp_path / "run", device="cpu")
    whole = read_manifest(pictures)
    columns = {name: whole.column(name) for name in whole.columns} | {"split": ["test"] * len(whole)}
    with pytest.raises(UsageError, match=r"has no training images \(splits: test\); give images of the split train"):
        pretrain(tiny(), build_manifest(columns, whole.root), tmp_path / "run", device="cpu")


def test_images_of_groups_with_val_or_test_images_are_not_trained_on(
    tiny: Tiny, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = read_manifest(pictures)
    splits = ["test", None, "val", *[None if i % 2 else "train" for i in range(len(whole) - 3)]]
    groups = ["a", "a", "b", *[f"c{i}" for i in range(len(whole) - 3)]]
    columns = {name: whole.column(name) for name in whole.columns} | {"split": splits, "group": groups}
    write_manifest(build_manifest(columns, whole.root), tmp_path / "marked.parquet")
    result = pretrain(tiny(run={"steps": 1}), tmp_path / "marked.parquet", tmp_path / "run", device="cpu")
    assert result.images == len(whole) - 3
    assert "left out" in capsys.readouterr().err
