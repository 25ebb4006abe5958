"""Run folder of pretraining: the names of its files, the check before it is written or resumed, and its record."""

import platform
import shlex
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dinomed.backbones.load import RUN_BACKBONE, RUN_CHECKPOINTS, RUN_RECORD
from dinomed.config import Config, flatten_settings, read_saved_config, to_yaml
from dinomed.errors import UsageError
from dinomed.io.checkpoint import list_checkpoints
from dinomed.io.files import read_json, write_json, write_text
from dinomed.io.output_folder import LOCK_FILE, check_free, prepare_output
from dinomed.loggers.names import LOGGER_FOLDERS

# folders
BACKBONE, CHECKPOINTS = RUN_BACKBONE, RUN_CHECKPOINTS
BEST, UNTRAINED = "best", "untrained"  # backbones too: of the best online k-NN, and before the first step
PCA = "pca"
# files
CONFIG_FILE, RECORD_FILE, LOG_FILE = "config.yaml", RUN_RECORD, "log.jsonl"
SEEN_FILE = "seen.parquet"  # the training index (dinomed.pretrain.curation.audit.training_index)
BAD_BATCH_FILE = "bad_batch.json"
_FOLDERS = (CHECKPOINTS, BACKBONE, BEST, UNTRAINED, PCA, *LOGGER_FOLDERS)
_FILES = (LOG_FILE, SEEN_FILE, BAD_BATCH_FILE, RECORD_FILE, CONFIG_FILE)

# settings that may change on a resume, because they change neither the weights nor the order of the data
FREE_TO_CHANGE = {
    f"run.{name}"
    for name in (
        "workers",
        "log_every",
        "loggers",
        "checkpoint_every",
        "keep_checkpoints",
        "parallel",
        "timeout_s",
        "assumed_watts",
        "max_bad_steps",
        "checkpoint_activations",
        "compile",
    )
}
# beginnings of the settings that `pretrain --from` takes from the weights, or that have no effect on loaded weights
SETTINGS_OF_WEIGHTS = ("backbone.", "mean", "std", "images.", "objective.dino_head.", "objective.ibot_head.")


def check_sources(folder: Path, *sources: str | Path | None) -> None:
    """Raise a `UsageError` if the run folder holds weights that the run needs: those of its teacher or its start."""
    for source in sources:
        if source is not None and folder.exists() and Path(source).resolve().is_relative_to(folder.resolve()):
            raise UsageError(
                f"output folder {folder} holds the weights that the run needs ({source}); use another folder"
            )


def open_run(folder: Path, config: Config, data: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Check that `folder` can take a new run, or that it holds the run to be resumed. Nothing is written.

    Args:
        config: the resolved config.
        data: the record that identifies the training images (fingerprint, number).

    Raises:
        UsageError: the folder holds a run and neither `resume` nor `overwrite` is given, or the run to be resumed has
            other settings or other images; the message lists them.
        DinomedError: another process works in the folder.
    """
    check_free(folder)
    if resume and (folder / CONFIG_FILE).exists():
        _check_same_run(folder, config, data)
        return
    if (folder / CONFIG_FILE).exists() and not overwrite:
        checkpoints = list_checkpoints(folder / CHECKPOINTS)
        state = f"checkpoint {checkpoints[-1].name}" if checkpoints else "no checkpoint yet"
        raise UsageError(f"run folder {folder} already holds a run ({state}); use `resume=True` or `overwrite=True`")
    if not _was_killed_at_start(folder):
        prepare_output(folder, overwrite=overwrite, marker=CONFIG_FILE)


def _was_killed_at_start(folder: Path) -> bool:
    """Return whether the folder holds the lock of a run that wrote no config, and nothing but its first files.

    Checkpoints and backbones are written after the config: with them the config was lost, and they are kept.
    """
    if (folder / CONFIG_FILE).exists() or not (folder / LOCK_FILE).exists():
        return False
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".tmp-")}
    return names <= {LOCK_FILE, *LOGGER_FOLDERS, *_FILES}


def clear_run(folder: Path) -> None:
    """Remove the files of an earlier run, and no others."""
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)


def write_record(folder: Path, config: Config, data: dict[str, Any], **entries: Any) -> None:
    """Write ``run.json`` (versions, device, data, progress) and then ``config.yaml`` (the resolved config).

    The config is the marker of a run, so a run that has it has a record too.
    """
    packages = ("dinomed", "torch", "torchvision", "numpy", "albumentations", "pillow")
    record = {
        "purpose": "for research use only, not for diagnosis",
        "data": data,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        **entries,
    }
    write_json(folder / RECORD_FILE, record)
    write_text(folder / CONFIG_FILE, to_yaml(config))


def _check_same_run(folder: Path, config: Config, data: dict[str, Any]) -> None:
    """Raise if the run in `folder` has other settings or images than the run that is to resume it."""
    old_config = read_saved_config(type(config), folder / CONFIG_FILE)
    before, now = flatten_settings(old_config), flatten_settings(config)
    changed = [
        f"{key}: {before.get(key)} -> {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in FREE_TO_CHANGE
    ]
    old_data = read_json(folder / RECORD_FILE)["data"]
    if changed:
        remedy = "start a new run in another folder"
        if "teacher" not in old_data | data and not any(key.startswith(SETTINGS_OF_WEIGHTS) for key in changed):
            source = shlex.quote(str(folder))
            remedy = (
                f"start a new run from its weights in another folder: dinomed pretrain CONFIG --from {source} -o RUN"
            )
        raise UsageError(
            f"run folder {folder} has other settings ({'; '.join(changed)}); resume it with its own settings, or "
            f"{remedy}"
        )
    if old_data["fingerprint"] != data["fingerprint"]:
        raise UsageError(
            f"run folder {folder} was trained on other images ({old_data['images']} before, {data['images']} now, with "
            "other contents); resume it with its own manifest, or use another folder"
        )


def describe_device(device: torch.device) -> str:
    """Return the name of a GPU, or the type of device with its threads and processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}"
