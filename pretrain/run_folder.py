"""A run folder: who may write to it, what it was started with, and whether a resume is the same run."""

import contextlib
import platform
import signal
from collections.abc import Collection
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from dinomed.config import build_config, parse_yaml, to_yaml
from dinomed.errors import UsageError
from dinomed.io.checkpoint import list_checkpoints
from dinomed.io.files import read_json, write_json, write_text
from dinomed.io.output_folder import check_free, prepare_output
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.curation.audit.training_index import SEEN_FILE

CONFIG_FILE, RECORD_FILE, CHECKPOINTS = "config.yaml", "run.json", "checkpoints"
# settings that a resumed run may change: they do not touch the weights or the order of the data
FREE_TO_CHANGE = {
    f"run.{name}"
    for name in (
        "workers",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "pca_images",
        "parallel",
        "timeout_s",
        "assumed_watts",
        "max_bad_steps",
        "checkpoint_activations",
        "compile",
    )
}


def open_run(folder: Path, config: PretrainConfig, data: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Make `folder` ready for a new run, or check that it holds the run that is to be resumed.

    `data` identifies the images (fingerprint, count); it goes into the record.

    Raises:
        UsageError: the folder holds a run and neither `resume` nor `overwrite` is given; or it is to be resumed with
            other settings or other images, which are listed.
        DinomedError: another process works in the folder.
    """
    check_free(folder)
    if resume and (folder / CONFIG_FILE).exists():
        _check_same(folder, config, data)
        return
    if (folder / CONFIG_FILE).exists() and not overwrite:
        steps = [checkpoint.name for checkpoint in list_checkpoints(folder / CHECKPOINTS)]
        raise UsageError(
            f"{folder} already holds a run ({steps[-1] if steps else 'no checkpoint yet'}); "
            "add --resume to go on with it or --overwrite to start anew"
        )
    prepare_output(folder, overwrite=overwrite, marker=CONFIG_FILE)


def clear_run(folder: Path) -> None:
    """Remove what an earlier run left, and only that."""
    import shutil

    for name in (CHECKPOINTS, "backbone", "best", "untrained", "pca", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("log.jsonl", SEEN_FILE, RECORD_FILE, CONFIG_FILE):
        (folder / name).unlink(missing_ok=True)


def write_record(folder: Path, config: PretrainConfig, data: dict[str, Any], **more: Any) -> None:
    """``config.yaml`` (resolved) and ``run.json`` (versions, device, data, progress)."""
    write_text(folder / CONFIG_FILE, to_yaml(config))
    packages = ("dinomed", "torch", "torchvision", "numpy", "albumentations", "pillow")
    record = {
        "purpose": "for research use only, not for diagnosis",
        "data": data,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
    }
    write_json(folder / RECORD_FILE, record)


def check_kept(asked: PretrainConfig, config: PretrainConfig, fixed: Collection[str], source: str) -> None:
    """Refuse where one of the `fixed` settings (``backbone.embed_dim``; or a whole section) is another one in `config`,
    which follows `source`, than was `asked` for.

    Raises:
        UsageError: with both values.
    """
    before, now = _flat(asked.model_dump(mode="json")), _flat(config.model_dump(mode="json"))
    for key, value in before.items():
        if now[key] != value and any(key == name or key.startswith(f"{name}.") for name in fixed):
            raise UsageError(
                f"--set {key}={value}: with {source} it is {now[key]}, and cannot be another; leave the setting out"
            )


def _check_same(folder: Path, config: PretrainConfig, data: dict[str, Any]) -> None:
    source = folder / CONFIG_FILE
    old = build_config(PretrainConfig, parse_yaml(source.read_text(encoding="utf-8"), str(source)), str(source))
    before, now = _flat(old.model_dump(mode="json")), _flat(config.model_dump(mode="json"))
    changed = [
        f"{key}: {before.get(key)} -> {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in FREE_TO_CHANGE
    ]
    if changed:
        raise UsageError(
            f"{folder} was started with other settings ({'; '.join(changed)}); "
            "resume it with its own, or use another folder"
        )
    old_data = read_json(folder / RECORD_FILE)["data"]
    if old_data["fingerprint"] != data["fingerprint"]:
        raise UsageError(
            f"{folder} was started on other images ({old_data['images']} then, {data['images']} now, contents differ); "
            "resume it with its own manifest, or use another folder"
        )


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        out |= _flat(value, name + ".") if isinstance(value, dict) else {name: value}
    return out


class StopSignal:
    """Turns the first SIGTERM or SIGINT into a wish to stop after the step; a second one quits at once."""

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.exit_code is not None:
            raise SystemExit(128 + number)
        self.exit_code = 128 + number


def describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}"
