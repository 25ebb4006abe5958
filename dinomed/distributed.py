"""The few collective operations the objective needs; each is the identity in one process (no group needed)."""

import torch
import torch.distributed as dist


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The elementwise sum of `tensor` over all ranks, in place where there are several."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor
