"""The few collective operations that are needed; each is the identity in one process (no group needed).

Processes are started by torchrun (or `dinomed pretrain --nproc N`), which tells each its rank in the environment.
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

T = TypeVar("T")
# gloo and NCCL have no exception of their own for this
_LOST_PEER = re.compile(r"gloo|NCCL|[Cc]onnection (reset|closed|refused)|[Tt]imed out|Timeout")


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """0 .. world_size() - 1; rank 0 writes files and speaks."""
    return dist.get_rank() if is_distributed() else 0


def was_launched() -> bool:
    """Whether this process is one of several that a launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launched_rank() -> int:
    """The rank that a launcher gave this process, also before and after the group exists."""
    return int(os.environ.get("RANK", "0")) if was_launched() else 0


@contextmanager
def process_group(device: torch.device, timeout_s: float) -> Iterator[torch.device]:
    """The group of all launched processes, and the device of this one; without a launcher, nothing but `device`.

    A process that died is noticed at once, one that hangs after `timeout_s`.
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
                f"process {rank()} lost another one, which died or hung for {timeout_s:g} s; its message tells why"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The elementwise sum of `tensor` over all ranks, in place where there are several."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def max_over_ranks(value: int, device: torch.device) -> int:
    """The largest value that any rank brings: how ranks agree to stop, or to skip a step."""
    if not is_distributed():
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def gather_rows(rows_BC: Tensor) -> Tensor:
    """(B, C) of each rank -> (ranks * B, C) on every rank, in the order of ranks; gradients go back to their owner."""
    return _GatherRows.apply(rows_BC) if is_distributed() else rows_BC


def on_main(function: Callable[[], T]) -> T:
    """Rank 0 runs `function`; every rank gets what it returned, or the error that it raised."""
    if not is_distributed():
        return function()
    told: list[Any] = [None, None]
    if rank() == 0:
        try:
            told[0] = function()
        except Exception as error:
            told[1] = error
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    result: T = told[0]
    return result


def gather_objects(value: T) -> list[T]:
    """The value of every rank, on every rank."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, rows: Tensor) -> Tensor:
        out = rows.new_empty(world_size() * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(out, rows.contiguous())
        return out

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        total = sum_over_ranks(gradients[0].contiguous().clone())
        return total.chunk(world_size())[rank()]
