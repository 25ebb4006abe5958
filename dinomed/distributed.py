"""Process group and collective operations; in a single process each operation is the identity and needs no group.

A launcher starts the processes (`dinomed.launched`).
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dinomed.errors import DinomedError
from dinomed.launched import was_launched

T = TypeVar("T")
# gloo and NCCL have no exception class for this
_LOST_PEER = re.compile(r"gloo|NCCL|[Cc]onnection (reset|closed|refused)|[Tt]imed out|Timeout")


def is_distributed() -> bool:
    """Return whether a process group of more than one process exists."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """Return the rank, 0 to world_size() - 1; rank 0 writes files and messages."""
    return dist.get_rank() if is_distributed() else 0


@contextmanager
def process_group(device: torch.device, timeout_s: float) -> Iterator[torch.device]:
    """Open the group of all launched processes, and yield the device of this process; without a launcher, `device`.

    Raises:
        DinomedError: another process died (noticed at once) or hung (noticed after `timeout_s`).
    """
    if not was_launched():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        yield device
    except (dist.DistError, RuntimeError) as error:
        if isinstance(error, dist.DistError) or _LOST_PEER.search(str(error)):
            raise DinomedError(
                f"process {rank()} lost another process, which died or hung for {timeout_s:g} s; see its message"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum `tensor` elementwise over all ranks, in place if there are several."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def elementwise_max_over_ranks(tensor: Tensor) -> Tensor:
    """Return the elementwise maximum of `tensor` over all ranks, in place if there are several."""
    if is_distributed():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def max_over_ranks(value: int, device: torch.device) -> int:
    """Return the largest value of all ranks, for joint decisions such as to stop or to skip a step."""
    if not is_distributed():
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def gather_rows(rows_BC: Tensor) -> Tensor:
    """Gather (B, C) of each rank to (ranks * B, C) on every rank, in rank order; gradients return to their rank."""
    return _GatherRows.apply(rows_BC) if is_distributed() else rows_BC


def on_main(function: Callable[[], T]) -> T:
    """Run `function` on rank 0; every rank returns its result or raises its error."""
    if not is_distributed():
        return function()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = function()
        except Exception as error:  # every rank raises it: without it the others would wait for the result
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def gather_objects(value: T) -> list[T]:
    """Return the values of all ranks on every rank."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


class _GatherRows(torch.autograd.Function):
    """Gathering of rows with a gradient: the backward pass sums over ranks and keeps the own rows."""

    @staticmethod
    def forward(_ctx: Any, rows: Tensor) -> Tensor:
        out = rows.new_empty(world_size() * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(out, rows.contiguous())
        return out

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        total = sum_over_ranks(gradients[0].contiguous().clone())
        return total.chunk(world_size())[rank()]
