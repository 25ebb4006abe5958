"""Atomic checkpoints: each is a new folder, written under a temporary name and renamed at the end.

A checkpoint is a folder of safetensors files and a ``state.json``, written last, with the size and hash of each file.
Nothing is pickled. A folder that was damaged later is detected when it is read, and the previous checkpoint is used.

With several processes, each writes its own shards by torch's distributed checkpoint with safetensors as storage. A
checkpoint of any number of processes can be read by any other number.
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
from dinomed.errors import DinomedError, first_line, system_reason
from dinomed.io.artifacts import check_file, describe_file
from dinomed.io.files import read_json, sync, write_json
from dinomed.io.tensor_file import write_tensors
from dinomed.log import logger

STATE_FILE = "state.json"
Tensors = Mapping[str, torch.Tensor]


class DamagedCheckpoints(DinomedError):
    """No checkpoint of a run can be read."""


def write_checkpoint(root: Path, name: str, tensors: Tensors, state: dict[str, Any]) -> Path:
    """Write `tensors` and `state` to ``root/name/``, and replace a checkpoint of that name. All ranks must call it.

    Raises:
        DinomedError: the checkpoint cannot be written; older ones are unchanged, and nothing incomplete remains.
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
        raise DinomedError(f"cannot write checkpoint {root / name}: {system_reason(error)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _seal(temporary: Path, final: Path, state: dict[str, Any]) -> Path:
    """Write the state with the size and hash of every file, and rename the folder."""
    files = {}
    for path in sorted(temporary.glob("*.safetensors")):
        sync(path)
        files[path.name] = describe_file(path)
    write_json(temporary / STATE_FILE, {"files": files, "state": state})
    sync(temporary)
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    sync(final.parent)
    return final


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Return the state of a checkpoint after a check of the size and hash of every file.

    Raises:
        DinomedError: a file is missing, truncated or changed.
    """
    record = read_json(folder / STATE_FILE)
    if not isinstance(record, dict) or not {"files", "state"} <= record.keys():
        raise DinomedError(f"{folder / STATE_FILE} is not the state of a checkpoint")
    for name, expected in record["files"].items():
        check_file(folder / name, expected)
    state: dict[str, Any] = record["state"]
    return state


def describe_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint by name on the device ``meta``: shapes and types without data."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    with _one_line_errors(f"checkpoint {folder} cannot be read"):
        metadata: dict[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: torch.empty(metadata[name].size, dtype=metadata[name].properties.dtype, device="meta")
        for name in sorted(metadata)
    }


def read_whole(folder: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """Read the whole tensors whose names start with `prefix`; the prefix is removed from the names."""
    tensors = {
        name: torch.empty_like(like, device="cpu")
        for name, like in describe_tensors(folder).items()
        if name.startswith(prefix)
    }
    fill(tensors, folder)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def fill(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Read `tensors` by name in place from a checkpoint; sharded tensors read only their own part.

    Raises:
        DinomedError: a name is missing or has another shape.
    """
    import torch.distributed.checkpoint as dcp

    with _one_line_errors(f"checkpoint {folder} cannot be read"):
        reader = dcp.HuggingFaceStorageReader(str(folder))
        dcp.load(dict(tensors), storage_reader=reader, no_dist=not is_distributed())


def _write_shards(folder: Path, tensors: Tensors) -> None:
    import torch.distributed.checkpoint as dcp

    with _one_line_errors(f"cannot write checkpoint {folder}"):
        dcp.save(dict(tensors), storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))


@contextmanager
def _one_line_errors(what: str) -> Iterator[None]:
    """Turn the errors of torch into a `DinomedError` of one line; `CheckpointException` is not an `Exception`."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as error:
        causes = {first_line(failure[0]) for failure in error.failures.values()}
        raise DinomedError(f"{what}: {'; '.join(sorted(causes))}") from None
    except (OSError, SafetensorError, RuntimeError, ValueError, AssertionError) as error:
        raise DinomedError(f"{what}: {first_line(error)}") from None


def list_checkpoints(root: Path) -> list[Path]:
    """List the complete checkpoints, oldest first (names sort by step)."""
    return sorted(p for p in root.glob("step_*") if p.is_dir()) if root.is_dir() else []


def newest_checkpoint(root: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest readable checkpoint and its state, None without checkpoints; warn about damaged ones.

    Raises:
        DamagedCheckpoints: there are checkpoints, but none can be read; the caller adds the remedy.
    """
    folders = list_checkpoints(root)
    for folder in reversed(folders):
        try:
            return folder, read_checkpoint(folder)
        except DinomedError as error:
            logger.warning(f"checkpoint {folder.name} is damaged ({error}); trying the previous one")
    if folders:
        raise DamagedCheckpoints(f"none of the {len(folders)} checkpoints in {root} can be read")
    return None


def prune_checkpoints(root: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for folder in list_checkpoints(root)[:-keep]:
        shutil.rmtree(folder)
