"""Copies of heads that can be traced for export.

Tracing fails where Python reads the value of a tensor (k of a k-NN head), so such buffers become numbers. Tracing fixes
adaptive pooling to one image size, so for any size it is replaced by two matrix products.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from dinomed.adapters.adapter import Adapter

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm  # their counter of batches is used in training only


def traceable(head: Adapter, *, any_size: bool) -> Adapter:
    """Return a copy that computes the same: without integer or bool scalars as buffers, and, for `any_size`, without
    adaptive pooling to more than one bin."""
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
    """``torch.nn.AdaptiveAvgPool2d((rows, columns))`` as two matrix products, for any input size."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        """Pool (B, C, height, width) to (B, C, rows, columns)."""
        left, right = averaging(x.shape[-2], self.rows, x), averaging(x.shape[-1], self.columns, x)
        return torch.einsum("rh,bchw,sw->bcrs", left, x, right)


def averaging(count: int, bins: int, like: Tensor) -> Tensor:
    """Return the weights (bins, count) of adaptive average pooling.

    Bin i is the mean of the values from floor(i count / bins) up to and without ceil((i + 1) count / bins).

    >>> averaging(5, 2, torch.zeros(())).mul(3).round().int().tolist()
    [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]
    """
    place, index = torch.arange(count, device=like.device), torch.arange(bins, device=like.device)
    first = torch.div(index * count, bins, rounding_mode="floor")
    end = torch.div((index + 1) * count + bins - 1, bins, rounding_mode="floor")
    inside = ((place >= first[:, None]) & (place < end[:, None])).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


def _bins(part: nn.Module) -> tuple[int, int] | None:
    """Return (rows, columns) of adaptive pooling to more than one bin; None for other modules."""
    if not isinstance(part, nn.AdaptiveAvgPool2d):
        return None
    size: Any = part.output_size
    rows, columns = (size, size) if isinstance(size, int) else size
    return None if rows is None or columns is None or rows == columns == 1 else (rows, columns)
