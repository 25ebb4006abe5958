"""Checkpoints that are whole or not there: a new folder for each, written under another name, renamed at the end.

A checkpoint is a folder of safetensors files and a ``state.json``, written last, that holds the size and hash of each.
Nothing is pickled. A folder that was damaged later is noticed when read, and the one before it is used.

Several processes write together, each its own shards, by torch's distributed checkpoint with safetensors as its
storage; what any number of processes wrote, any other number reads.
"""

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from dinomed.distributed import is_distributed, on_main
from dinomed.errors import DinomedError
from dinomed.io.artifacts import check_file, describe_file
from dinomed.io.files import read_json, sync, write_json
from dinomed.io.tensor_file import write_tensors
from dinomed.log import logger

STATE_FILE = "state.json"
Tensors = Mapping[str, torch.Tensor]


class DamagedCheckpoints(DinomedError):
    """No checkpoint of a run can be read."""


def write_checkpoint(root: Path, name: str, tensors: Tensors, state: dict[str, Any]) -> Path:
    """``root/name/`` with `tensors` and `state`; one of that name is replaced. All ranks call it together.

    Raises:
        DinomedError: it cannot be written; older checkpoints are untouched and nothing half-written stays.
    """
    temporary = root / f".tmp-{name}"
    try:
        on_main(lambda: _make_empty(temporary))
        if is_distributed():
            _write_shards(temporary, tensors)
        else:
            write_tensors(temporary / "tensors.safetensors", tensors)
        return on_main(lambda: _seal(temporary, root / name, state))
    except OSError as error:
        raise DinomedError(f"cannot write checkpoint {root / name}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _seal(temporary: Path, final: Path, state: dict[str, Any]) -> Path:
    """Write the state with the size and hash of every file, and give the folder its name."""
    sums = {}
    for path in sorted(temporary.glob("*.safetensors")):
        sync(path)
        sums[path.name] = describe_file(path)
    write_json(temporary / STATE_FILE, {"files": sums, "state": state})
    sync(temporary)
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    sync(final.parent)
    return final


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint whose files all have the sizes and hashes that they were written with.

    Raises:
        DinomedError: a file is missing, cut off or changed.
    """
    record = read_json(folder / STATE_FILE)
    if not isinstance(record, dict) or not {"files", "state"} <= record.keys():
        raise DinomedError(f"{folder / STATE_FILE} is not the state of a checkpoint")
    for name, expected in record["files"].items():
        check_file(folder / name, expected)
    state: dict[str, Any] = record["state"]
    return state


def describe_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name, with their shapes and types and without their data (on torch's `meta`)."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    with _translated(f"checkpoint {folder} cannot be read"):
        found: dict[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: torch.empty(found[name].size, dtype=found[name].properties.dtype, device="meta") for name in sorted(found)
    }


def read_whole(folder: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors whose names start with `prefix`, whole, whatever number of processes wrote them; without it."""
    tensors = {
        name: torch.empty_like(like, device="cpu")
        for name, like in describe_tensors(folder).items()
        if name.startswith(prefix)
    }
    fill(tensors, folder)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def fill(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Read `tensors` in place, by name, from a checkpoint; sharded ones read only their part of it.

    Raises:
        DinomedError: a name is not there, or has another shape.
    """
    import torch.distributed.checkpoint as dcp

    with _translated(f"checkpoint {folder} cannot be read"):
        reader = dcp.HuggingFaceStorageReader(str(folder))
        dcp.load(dict(tensors), storage_reader=reader, no_dist=not is_distributed())


def _write_shards(folder: Path, tensors: Tensors) -> None:
    import torch.distributed.checkpoint as dcp

    with _translated(f"cannot write checkpoint {folder}"):
        dcp.save(dict(tensors), storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """torch's `CheckpointException` (no `Exception`, and a page long) to one line."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as error:
        causes = {str(failure[0]).splitlines()[0] for failure in error.failures.values()}
        raise DinomedError(f"{what}: {'; '.join(sorted(causes))}") from None
    except (OSError, SafetensorError, RuntimeError, ValueError, AssertionError) as error:
        raise DinomedError(f"{what}: {str(error).splitlines()[0]}") from None


def list_checkpoints(root: Path) -> list[Path]:
    """Finished checkpoints, oldest first (names sort by step)."""
    return sorted(p for p in root.glob("step_*") if p.is_dir()) if root.is_dir() else []


def newest_checkpoint(root: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its state, with a warning for each damaged one; None where there is none at all.

    Raises:
        DamagedCheckpoints: there are checkpoints and none can be read; what is to be done depends on whose they are.
    """
    folders = list_checkpoints(root)
    for folder in reversed(folders):
        try:
            return folder, read_checkpoint(folder)
        except DinomedError as error:
            logger.warning(f"checkpoint {folder.name} is damaged ({error}); trying the one before")
    if folders:
        raise DamagedCheckpoints(f"none of the {len(folders)} checkpoints in {root} can be read")
    return None


def prune_checkpoints(root: Path, keep: int) -> None:
    """Remove all but the newest `keep`."""
    for folder in list_checkpoints(root)[:-keep]:
        shutil.rmtree(folder)
