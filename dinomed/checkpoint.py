"""Checkpoints that are whole or not there: a new folder for each, written under another name, renamed at the end.

A checkpoint is a folder of safetensors files and a ``state.json``, written last, that holds the size and hash of each.
Nothing is pickled. A folder that was damaged later is noticed when read, and the one before it is used.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dinomed.errors import DinomedError
from dinomed.files import read_json, sha256_file, sync, write_json
from dinomed.progress import warn

STATE_FILE = "state.json"
Tensors = Mapping[str, torch.Tensor]


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """One safetensors file, flushed to disk; not atomic by itself.

    Raises:
        DinomedError: it cannot be written (a full disk, mostly).
    """
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)
        sync(path)
    except (OSError, SafetensorError) as error:
        raise DinomedError(f"cannot write {path}: {error}") from None


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Raises `DinomedError`, naming the file, if it is missing, cut off, or no safetensors file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise DinomedError(f"{path} cannot be read: {error}") from None


def write_checkpoint(root: Path, name: str, files: Mapping[str, Tensors], state: dict[str, Any]) -> Path:
    """``root/name/`` with a safetensors file for each of `files` and `state`; one of that name is replaced.

    Raises:
        DinomedError: it cannot be written; older checkpoints are untouched and nothing half-written stays.
    """
    temporary = root / f".tmp-{name}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        sums = {}
        for stem, tensors in files.items():
            path = temporary / f"{stem}.safetensors"
            write_tensors(path, tensors)
            sums[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        write_json(temporary / STATE_FILE, {"files": sums, "state": state})
        sync(temporary)
        final = root / name
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
        sync(root)
    except OSError as error:
        raise DinomedError(f"cannot write checkpoint {root / name}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def read_checkpoint(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """(tensors by file stem, state) of a checkpoint whose sizes and hashes all match.

    Raises:
        DinomedError: a file is missing, cut off or changed.
    """
    record = read_json(folder / STATE_FILE)
    if not isinstance(record, dict) or not {"files", "state"} <= record.keys():
        raise DinomedError(f"{folder / STATE_FILE} is not the state of a checkpoint")
    files = {}
    for name, expected in record["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
            raise DinomedError(f"{path} is missing, cut off or changed")
        files[path.stem] = read_tensors(path)
    return files, record["state"]


def list_checkpoints(root: Path) -> list[Path]:
    """Finished checkpoints, oldest first (names sort by step)."""
    return sorted(p for p in root.glob("step_*") if p.is_dir()) if root.is_dir() else []


def read_newest_checkpoint(root: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]] | None:
    """The newest checkpoint that can be read, with a warning for each that cannot; None where there is none at all.

    Raises:
        DinomedError: there are checkpoints and none can be read.
    """
    folders = list_checkpoints(root)
    for folder in reversed(folders):
        try:
            return read_checkpoint(folder)
        except DinomedError as error:
            warn(f"checkpoint {folder.name} is damaged ({error}); trying the one before")
    if folders:
        raise DinomedError(f"none of the {len(folders)} checkpoints in {root} can be read; start anew with --overwrite")
    return None


def prune_checkpoints(root: Path, keep: int) -> None:
    """Remove all but the newest `keep`."""
    for folder in list_checkpoints(root)[:-keep]:
        shutil.rmtree(folder)
