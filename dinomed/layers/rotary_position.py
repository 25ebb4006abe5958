"""Rotary position embedding (RoPE) of patches, as in DINOv3 (Siméoni et al. 2025, arXiv 2508.10104, section 3.2).

The position of a patch is the centre of the patch in an image whose sides go from -1 to 1. Queries and keys are rotated
by angles proportional to it, so an image of any size needs no resized table.

Shape suffixes: T tokens of all sequences together, N tokens an image, H heads, D channels a head.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def rotation_table(rows: int, columns: int, prefix: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Compute the cosines and sines by which the tokens of an image are rotated.

    Args:
        rows: of patches.
        columns: of patches.
        prefix: tokens before the patches (class token and registers), which are not rotated.
        head_dim: channels of a head, a multiple of 4.
        theta: base of the periods.
        device: device of the result.

    Returns:
        (N, 2, D): cosines and sines, float32.
    """
    frequencies = 1 / theta ** torch.arange(0, 1, 4 / head_dim, dtype=torch.float32, device=device)
    row, column = (torch.arange(0.5, n, dtype=torch.float32, device=device) / n for n in (rows, columns))
    centres = torch.stack(torch.meshgrid(row, column, indexing="ij"), dim=-1).flatten(0, 1)
    centres = 2.0 * centres - 1.0
    angles = (2 * math.pi * centres[:, :, None] * frequencies).flatten(1, 2).tile(2)
    still = torch.tensor([1.0, 0.0], device=device)[None, :, None].expand(prefix, 2, head_dim)
    return torch.cat([still, torch.stack([angles.cos(), angles.sin()], dim=1)])


def rotate(qkv_T3HD: Tensor, groups: Sequence[tuple[int, int]], tables: Sequence[Tensor]) -> Tensor:
    """Rotate the queries and keys of packed sequences, (T, 3, H, D) -> (T, 3, H, D).

    Args:
        qkv_T3HD: queries, keys and values.
        groups: (images, tokens an image) of each group.
        tables: a `rotation_table` for each group.
    """
    parts = [table.expand(B, *table.shape).flatten(0, 1) for (B, _), table in zip(groups, tables, strict=True)]
    cos, sin = (parts[0] if len(parts) == 1 else torch.cat(parts))[:, :, None, None].unbind(1)  # each T, 1, 1, D
    qk = qkv_T3HD[:, :2]
    first, second = qk.chunk(2, dim=-1)
    turned = qk * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned.to(qkv_T3HD.dtype), qkv_T3HD[:, 2:]], dim=1)
