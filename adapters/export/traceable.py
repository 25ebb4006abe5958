"""Heads as the exporter can follow them.

Python that asks a tensor for its value (the k of a k-NN head) stops it: such values become numbers. Adaptive pooling it
turns into indices of the one size that it saw: for any size it becomes two products.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from dinomed.adapters.adapter import Adapter

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm  # they count batches, in training only


def traceable(head: Adapter, *, any_size: bool) -> Adapter:
    """A copy that computes the same, without single numbers (whole or true/false) as buffers, and, for `any_size`,
    without adaptive pooling to more than one bin."""
    copy = deepcopy(head)
    for part in copy.modules():
        for name, value in list(part.named_buffers(recurse=False)):
            if value.ndim == 0 and not value.is_floating_point() and not isinstance(part, _BATCH_NORMS):
                delattr(part, name)
                setattr(part, name, value.item())
    pools = {name: _bins(part) for name, part in copy.named_modules()} if any_size else {}
    for name, bins in pools.items():
        if bins is not None:
            copy.set_submodule(name, AnyPool(*bins))
    return copy


class AnyPool(nn.Module):
    """``torch.nn.AdaptiveAvgPool2d((rows, columns))`` as two products, with matrices that a graph makes of any size."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, height, width) -> (B, C, rows, columns)."""
        left, right = averaging(x.shape[-2], self.rows, x), averaging(x.shape[-1], self.columns, x)
        return torch.einsum("rh,bchw,sw->bcrs", left, x, right)


def averaging(count: int, bins: int, like: Tensor) -> Tensor:
    """Weights (bins, count) of adaptive average pooling: bin i is the mean from floor(i count / bins) up to
    ceil((i + 1) count / bins), without the latter.

    >>> averaging(5, 2, torch.zeros(())).mul(3).round().int().tolist()
    [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]
    """
    place, index = torch.arange(count, device=like.device), torch.arange(bins, device=like.device)
    first = torch.div(index * count, bins, rounding_mode="floor")
    end = torch.div((index + 1) * count + bins - 1, bins, rounding_mode="floor")
    inside = ((place >= first[:, None]) & (place < end[:, None])).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


def _bins(part: nn.Module) -> tuple[int, int] | None:
    """(rows, columns) of adaptive pooling to more than one bin, which the exporter does not follow at any size."""
    if not isinstance(part, nn.AdaptiveAvgPool2d):
        return None
    size: Any = part.output_size
    rows, columns = (size, size) if isinstance(size, int) else size
    return None if rows is None or columns is None or rows == columns == 1 else (rows, columns)
