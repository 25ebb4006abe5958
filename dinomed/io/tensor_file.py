"""Safetensors files, with or without a record in their header.

A bundle and an index are one file each. The file contains tensors, and its header contains a JSON record with the hash
of the tensors (`hash_tensors`). One rename replaces tensors and record together, so they always belong together.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dinomed.errors import DinomedError, first_line, system_reason
from dinomed.io.files import sync

Record = TypeVar("Record", bound=BaseModel)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write one safetensors file and flush it to the disk. Not atomic by itself.

    Raises:
        DinomedError: the file cannot be written, for example because the disk is full.
    """
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)
        sync(path)
    except (OSError, SafetensorError) as error:
        raise DinomedError(f"cannot write {path}: {system_reason(error)}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Raises:
        DinomedError: the file is missing, truncated, or not a safetensors file.
    """
    check_readable(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise DinomedError(f"{path} cannot be read: {error}") from None


def check_readable(path: Path) -> None:
    """Raise a `DinomedError` with the reason of the system for a file that it does not open.

    safetensors calls each such file missing.
    """
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        remedy = "; change its permissions" if isinstance(error, PermissionError) else ""
        raise DinomedError(f"{path} cannot be read: {system_reason(error)}{remedy}") from None


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over the names, types, shapes and bytes of the tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        if value.numel():  # an empty tensor has no bytes, and torch does not view it as such
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def has_entry(path: Path, entry: str) -> bool:
    """Return whether the header of a safetensors file has this entry; raise a `DinomedError` if the file is damaged."""
    check_readable(path)
    try:
        with safe_open(path, "pt") as file:
            return entry in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise DinomedError(f"{path}: a damaged safetensors file ({first_line(error, 200)}); copy it again") from None


def read_header(path: Path, entry: str, remedy: str) -> Any:
    """Return the JSON value in the header entry of a safetensors file; the tensors are not read.

    Args:
        remedy: last part of the error message: what the user should do, such as ``train again``.

    Raises:
        DinomedError: the file is damaged, or its header has no such entry.
    """
    check_readable(path)
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(entry)
        if text is None:
            raise DinomedError(f"{path} has no {entry} record in its header; {remedy}")
        return json.loads(text)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise DinomedError(f"{path} is truncated, damaged, or not a safetensors file ({error}); {remedy}") from None


def parse_record(path: Path, data: Any, model: type[Record], format_name: str, remedy: str) -> Record:
    """Validate a record that `read_header` returned.

    Args:
        model: pydantic class of the record, with a field ``format``.
        format_name: the value of ``format`` that this version reads.

    Raises:
        DinomedError: the record has another format, lacks a field, or has a field with an invalid value.
    """
    record_format = data.get("format") if isinstance(data, dict) else None
    if record_format != format_name:
        raise DinomedError(
            f"{path}: format {first_line(repr(record_format), 60)}, this version reads {format_name!r}; {remedy}"
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise DinomedError(f"{path} is damaged: {where}: {error.errors()[0]['msg']}; {remedy}") from None


def check_tensors(path: Path, tensors: Mapping[str, Tensor], expected_hash: str, remedy: str) -> None:
    """Compare tensors with the hash that their record holds.

    Raises:
        DinomedError: the hash does not match.
    """
    if hash_tensors(tensors) != expected_hash:
        raise DinomedError(f"{path} is damaged: its tensors do not match its record; {remedy}")
