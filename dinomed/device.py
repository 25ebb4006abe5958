"""Torch devices by name: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``."""

import re
from typing import TYPE_CHECKING

from dinomed.errors import UsageError

if TYPE_CHECKING:
    import torch


def resolve_device(name: str = "auto") -> "torch.device":
    """Return the torch device of a name; ``auto`` prefers CUDA, then MPS, then the CPU.

    Raises:
        UsageError: the name is invalid, or this machine has no such device.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", name):
        raise UsageError(f"`device={name!r}`: expected auto, cpu, cuda, cuda:N or mps")
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    if name.startswith("cuda"):
        if not cuda:
            raise UsageError(f"`device={name}`: this machine has no usable CUDA device; use `device=cpu`")
        index = int(name.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            raise UsageError(f"`device={name}`: this machine has CUDA devices 0 to {torch.cuda.device_count() - 1}")
        return torch.device("cuda", index)
    if name == "mps" and not mps:
        raise UsageError("`device=mps`: not available on this machine; use `device=cpu`")
    return torch.device(name)
