"""Kernels of packed attention, and their choice.

Shape suffixes: T tokens of all sequences together, B images, N tokens an image, C channels, H heads, D channels a head.

Each kernel equals the block-diagonal mask of DINOv2 (Oquab et al. 2023, section 5, "sequence packing"):

- sdpa: torch's scaled dot product, one call for each group of equal length; the only one with a CPU kernel;
- xformers: one call for all groups with a ``BlockDiagonalMask``, on CUDA;
- varlen: one call for all groups with `torch.nn.attention.varlen` (FlashAttention), on CUDA, in half precision.

Sequences of one group need no mask, and always take sdpa.
"""

import os
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dinomed.errors import UsageError
from dinomed.log import logger

Group = tuple[int, int]

KERNEL_VARIABLE = "DINOMED_ATTENTION"
"""Environment variable that names a kernel, or auto."""


def attend(qkv_T3HD: Tensor, groups: Sequence[Group]) -> Tensor:
    """Return the attention of each sequence to itself, (T, 3, H, D) -> (T, C).

    Raises:
        UsageError: see `choose_kernel`.
    """
    T, _, H, D = qkv_T3HD.shape
    if len(groups) == 1:
        return attend_sdpa(qkv_T3HD, groups).reshape(T, H * D)
    kernel = choose_kernel(qkv_T3HD.dtype, D, qkv_T3HD.device.type)
    return KERNELS[kernel](qkv_T3HD, groups).reshape(T, H * D)


def choose_kernel(dtype: torch.dtype, head_dim: int, device: str) -> str:
    """Return the name of the kernel for sequences of several lengths: sdpa, xformers or varlen.

    It is the one that the environment variable DINOMED_ATTENTION names. With auto, or without the variable, it is on
    CUDA the first of xformers, varlen and sdpa that works, elsewhere sdpa. The choice is logged once.

    Args:
        dtype: of queries, keys and values.
        head_dim: channels of a head.
        device: type of the device, such as cuda.

    Raises:
        UsageError: the variable names no kernel, or one that does not work here.
    """
    return _choose_kernel(os.environ.get(KERNEL_VARIABLE) or "auto", dtype, head_dim, device)


@cache
def _choose_kernel(name: str, dtype: torch.dtype, head_dim: int, device: str) -> str:
    if name not in ("auto", *KERNELS):
        raise UsageError(f"{KERNEL_VARIABLE}={name}: choose auto, {', '.join(KERNELS)}")
    if name == "auto":
        candidates = ("xformers", "varlen") if device == "cuda" else ()
        chosen = next((each for each in candidates if kernel_works(each, dtype, head_dim, device)), "sdpa")
    elif name == "sdpa" or kernel_works(name, dtype, head_dim, device):
        chosen = name
    else:
        precision = str(dtype).removeprefix("torch.")
        raise UsageError(f"{KERNEL_VARIABLE}={name} does not work on {device} in {precision}; choose auto or sdpa")
    log = logger.debug if name == "auto" and device == "cpu" else logger.info
    log(f"kernel of packed attention: {chosen}")
    return chosen


@cache
def kernel_works(name: str, dtype: torch.dtype, head_dim: int, device: str) -> bool:
    """Return whether a kernel works here, forward and backward.

    It is tried once. Wheels of xformers are built for one version of torch and CUDA, and FlashAttention for some
    devices; where they do not fit, only a call shows it. The trial does not depend on the first caller: gradients are
    on, and no random number is drawn.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():
            qkv = torch.ones(12, 3, 2, head_dim, dtype=dtype, device=device, requires_grad=True)
            KERNELS[name](qkv, ((1, 8), (1, 4))).sum().backward()
        return True
    except (ImportError, NotImplementedError, RuntimeError, ValueError, AttributeError, TypeError):
        return False


def prepare_for_compilation() -> None:
    """Let compiled graphs take the answer of `choose_kernel` as a constant; they break at its trial otherwise.

    It is no decorator because it imports `torch._dynamo`, which takes seconds.
    """
    torch.compiler.assume_constant_result(choose_kernel)


def pack(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate parts along the first dimension. A single part is returned without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def attend_sdpa(qkv_T3HD: Tensor, groups: Sequence[Group]) -> Tensor:
    """Attend group by group."""
    parts = qkv_T3HD.split([B * N for B, N in groups])
    return pack([_one_group(part, group) for part, group in zip(parts, groups, strict=True)])


def _one_group(qkv_T3HD: Tensor, group: Group) -> Tensor:
    B, N = group
    _, _, H, D = qkv_T3HD.shape
    q, k, v = qkv_T3HD.view(B, N, 3, H, D).permute(2, 0, 3, 1, 4)  # each B, H, N, D
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B * N, H, D)


def attend_xformers(qkv_T3HD: Tensor, groups: Sequence[Group]) -> Tensor:
    """Attend in one call of xformers, with a block-diagonal mask."""
    from xformers.ops import fmha

    mask = _block_diagonal_mask(tuple(groups), qkv_T3HD.device)
    q, k, v = qkv_T3HD[None].unbind(2)  # each 1, T, H, D
    out: Tensor = fmha.memory_efficient_attention(q, k, v, attn_bias=mask)
    return out


@cache
def _block_diagonal_mask(groups: tuple[Group, ...], device: torch.device) -> object:
    from xformers.ops import fmha

    lengths = [N for B, N in groups for _ in range(B)]
    with torch.inference_mode(False):  # it is kept, and a later step needs it in its backward pass
        return fmha.attn_bias.BlockDiagonalMask.from_seqlens(lengths, device=device)


def attend_varlen(qkv_T3HD: Tensor, groups: Sequence[Group]) -> Tensor:
    """Attend in one call of torch's attention for sequences of several lengths."""
    from torch.nn.attention.varlen import varlen_attn

    starts, longest = _starts(tuple(groups), qkv_T3HD.device), max(N for _, N in groups)
    q, k, v = qkv_T3HD.unbind(1)  # each T, H, D
    return cast(Tensor, varlen_attn(q, k, v, starts, starts, longest, longest))


@cache
def _starts(groups: tuple[Group, ...], device: torch.device) -> Tensor:
    """Return the first token of each sequence, and the number of tokens, int32."""
    lengths = [N for B, N in groups for _ in range(B)]
    with torch.inference_mode(False):  # it is kept, and a later step needs it in its backward pass
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


KERNELS: dict[str, Callable[[Tensor, Sequence[Group]], Tensor]] = {
    "sdpa": attend_sdpa,
    "xformers": attend_xformers,
    "varlen": attend_varlen,
}
