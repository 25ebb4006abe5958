"""Many devices by FSDP2: parameters sharded over all of them, or replicated where the model is small.

Replication is FSDP2 on a mesh whose sharding side is 1 (what DDP does, on one code path). The precision policy is the
recipe's: float32 shards; half precision for the broadcast and the reduction of the backbone, float32 for the heads.
"""

import warnings
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils._pytree import register_dataclass

from dinomed.backbones.vit import Tokens, VisionTransformer
from dinomed.distributed import sum_over_ranks, world_size

Parallel = Literal["replicate", "shard"]
# FSDP2 gathers weights for the backward when a gradient reaches an output: it has to find the tensors in ours
# (torch 2.11 does not look into a dataclass that it does not know)
register_dataclass(Tokens)


def distribute(side: nn.ModuleDict, how: Parallel, device: torch.device, half: torch.dtype | None) -> None:
    """Spread a student or a teacher (backbone and heads) over all processes, in place; every block is a unit.

    `half` is the type of the backbone's computation and communication; None: float32.
    """
    from torch.distributed.device_mesh import init_device_mesh

    # that its outputs are views matters to code that changes them in place, and none here does
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    shape, names = ((world_size(), 1), ("replicate", "shard")) if how == "replicate" else ((world_size(),), ("shard",))
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    policy = MixedPrecisionPolicy() if half is None else MixedPrecisionPolicy(param_dtype=half, reduce_dtype=half)
    for module in side.values():
        if isinstance(module, VisionTransformer):
            for block in module.blocks:
                fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
            fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
            for method in ("forward_packed", "forward_blocks"):
                register_fsdp_forward_method(module, method)
        else:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)


def reduce_gradients(side: nn.ModuleDict, now: bool) -> None:
    """Whether the coming backward sums gradients over processes; only that of a batch's last slice needs to."""
    for module in side.values():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(now)


def average_gradients(side: nn.ModuleDict) -> None:
    """The mean of each gradient over all processes, in one message: for a side that every process holds whole and
    FSDP2 knows nothing of, as it cannot spread a layer of which an adapter alone learns."""
    learned = [p for p in side.parameters() if p.requires_grad]
    for parameter in learned:
        if parameter.grad is None:  # none here, and perhaps one elsewhere
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in learned if p.grad is not None]
    total = sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients])).div_(world_size())
    for gradient, mean in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, without its graph."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def whole(tensor: Tensor) -> Tensor:
    """The full tensor, on every process that asks (all must)."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def whole_state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The state dict of a module with full tensors, one after the other, on the CPU (all processes must ask)."""
    for name, tensor in module.state_dict().items():
        yield name, whole(tensor).cpu()
