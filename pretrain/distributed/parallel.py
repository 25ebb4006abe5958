"""Training on several devices by FSDP2: parameters sharded over all devices, or replicated if the model is small.

Replication is FSDP2 on a mesh whose sharding dimension is 1, which does what DDP does with the same code. The
precision is that of DINOv3: float32 shards; half precision for the computation and the broadcast of the backbone;
gradients are reduced in float32, because sums over many ranks in half precision lose small gradients.
"""

import warnings
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils._pytree import register_dataclass

from dinomed.backbones.vit import TokenModel, Tokens, VisionTransformer
from dinomed.distributed import sum_over_ranks, world_size

Parallel = Literal["replicate", "shard"]
# FSDP2 gathers weights for the backward pass when a gradient reaches an output. It must find the tensors in `Tokens`;
# torch 2.11 does not look into an unregistered dataclass.
register_dataclass(Tokens)


def distribute(side: nn.ModuleDict, parallel: Parallel, device: torch.device, half: torch.dtype | None) -> None:
    """Distribute a student or a teacher (backbone and heads) over all processes, in place; each block is a unit.

    Args:
        half: type of the backbone's computation and communication; None for float32.
    """
    from torch.distributed.device_mesh import init_device_mesh

    # the warning concerns code that changes outputs in place; there is none here
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    shape, names = (
        ((world_size(), 1), ("replicate", "shard")) if parallel == "replicate" else ((world_size(),), ("shard",))
    )
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    policy = precision_policy(half)
    for module in side.values():
        if isinstance(module, VisionTransformer):
            for block in module.blocks:
                fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
            fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
            register_fsdp_forward_method(module, "forward_packed")
        else:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        if isinstance(module, TokenModel):
            register_fsdp_forward_method(module, "forward_blocks")


def precision_policy(half: torch.dtype | None) -> MixedPrecisionPolicy:
    """Return FSDP2's policy for the backbone: computation and broadcast in `half`, reduction in float32."""
    return MixedPrecisionPolicy(param_dtype=half, reduce_dtype=None if half is None else torch.float32)


def sync_gradients(side: nn.ModuleDict, enabled: bool) -> None:
    """Set whether the next backward pass reduces gradients over processes; only the last slice of a batch needs it."""
    for module in side.values():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(enabled)


def average_gradients(side: nn.ModuleDict) -> None:
    """Replace each gradient by its mean over all processes, in one message.

    It is for a model with LoRA adapters, which every process holds whole: FSDP2 cannot shard a layer of which only the
    adapter learns.
    """
    learned = [p for p in side.parameters() if p.requires_grad]
    for parameter in learned:
        if parameter.grad is None:  # another process may have one
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in learned if p.grad is not None]
    total = sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients])).div_(world_size())
    for gradient, mean in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def local_shard(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, without its graph."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor; all processes must call it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def full_state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the state dict of a module with full tensors on the CPU, one at a time; all processes must iterate."""
    for name, tensor in module.state_dict().items():
        yield name, full_tensor(tensor).cpu()
