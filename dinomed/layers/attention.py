"""Multi-head self-attention over packed sequences. The tokens of a crop attend only to tokens of the same crop.

Shape suffixes: T tokens of all sequences together, B images, N tokens an image, C channels, H heads, D channels a head.

Crops of one size form a group (B, N). The linear layers see all tokens as one (T, C) matrix; the attention itself runs
group by group. This equals the block-diagonal mask of DINOv2 (Oquab et al. 2023, section 5, "sequence packing") and
works on CPU: SDPA has a CPU kernel, xformers has none. On CUDA, xformers computes all groups in one call with its
``BlockDiagonalMask``.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dinomed.layers.rotary_position import rotate

Group = tuple[int, int]


class Attention(nn.Module):
    """Multi-head self-attention with a query-key-value and an output projection.

    The state-dict keys are those of DINOv2 (``qkv``, ``proj``).
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"embedding dimension {dim} is not divisible by {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_TC: Tensor, groups: Sequence[Group], rotations: Sequence[Tensor] | None = None) -> Tensor:
        """Apply attention, (T, C) -> (T, C). T is the sum of B * N over `groups`, in their order.

        Args:
            rotations: a `rotation_table` for each group; None without rotary positions.
        """
        T, C = x_TC.shape
        qkv_T3HD = self.qkv(x_TC).view(T, 3, self.num_heads, C // self.num_heads)
        if rotations is not None:
            qkv_T3HD = rotate(qkv_T3HD, groups, rotations)
        if len(groups) > 1 and x_TC.is_cuda and xformers_works(qkv_T3HD.dtype, C // self.num_heads):
            out_TC = _block_diagonal(qkv_T3HD, groups).reshape(T, C)
        else:
            out_TC = pack([_one_group(part, group) for part, group in _split(qkv_T3HD, groups)])
        return self.proj(out_TC)


def pack(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate parts along the first dimension. A single part is returned without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _split(qkv_T3HD: Tensor, groups: Sequence[Group]) -> list[tuple[Tensor, Group]]:
    return list(zip(qkv_T3HD.split([B * N for B, N in groups]), groups, strict=True))


def _one_group(qkv_T3HD: Tensor, group: Group) -> Tensor:
    B, N = group
    _, _, H, D = qkv_T3HD.shape
    q, k, v = qkv_T3HD.view(B, N, 3, H, D).permute(2, 0, 3, 1, 4)  # each B, H, N, D
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B * N, H * D)


def _block_diagonal(qkv_T3HD: Tensor, groups: Sequence[Group]) -> Tensor:
    from xformers.ops import fmha

    mask = _block_diagonal_mask(tuple(groups), qkv_T3HD.device)
    q, k, v = qkv_T3HD[None].unbind(2)  # each 1, T, H, D
    return fmha.memory_efficient_attention(q, k, v, attn_bias=mask)


@cache
def _block_diagonal_mask(groups: tuple[Group, ...], device: torch.device) -> object:
    from xformers.ops import fmha

    return fmha.attn_bias.BlockDiagonalMask.from_seqlens([N for B, N in groups for _ in range(B)], device=device)


def xformers_works(dtype: torch.dtype, head_dim: int, device: str = "cuda") -> bool:
    """Return whether xformers' block-diagonal attention works here, forward and backward.

    It is tried once. The wheels of xformers are built for one version of torch and CUDA; with other versions the
    kernels are missing, and only a call shows it. The trial does not depend on the first caller: gradients are on, and
    no random number is drawn.
    """
    return _try_xformers(dtype, head_dim, device)


def prepare_for_compilation() -> None:
    """Let compiled graphs take the answer of `xformers_works` as a constant; they break at its trial otherwise.

    It is no decorator because it imports `torch._dynamo`, which takes seconds.
    """
    torch.compiler.assume_constant_result(xformers_works)


@cache
def _try_xformers(dtype: torch.dtype, head_dim: int, device: str) -> bool:
    try:
        from xformers.ops import fmha

        with torch.inference_mode(False), torch.enable_grad():
            q = torch.ones(1, 12, 2, head_dim, dtype=dtype, device=device, requires_grad=True)
            mask = fmha.attn_bias.BlockDiagonalMask.from_seqlens([8, 4], device=q.device)
            fmha.memory_efficient_attention(q, q, q, attn_bias=mask).sum().backward()
        return True
    except (ImportError, NotImplementedError, RuntimeError, ValueError, AttributeError, TypeError):
        return False
