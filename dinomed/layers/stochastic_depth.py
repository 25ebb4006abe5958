"""Stochastic depth by slicing: dropped images skip the computation; they are not multiplied by zero.

DINOv2 (Oquab et al. 2023, section 5, "efficient stochastic depth"): at a rate of 0.4 this saves 40% of the FLOPs of a
residual branch. The number of images is rounded down: `num_kept(B, rate)` of B images pass the branch, so with few
images the effective rate differs from the nominal one (2 images at 0.3 keep 1, a rate of 0.5). The trainer logs the
effective rate.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dinomed.layers.packed_attention import Group, pack

Branch = Callable[[Tensor, Sequence[Group]], Tensor]


def num_kept(batch: int, rate: float) -> int:
    """Return how many of `batch` images pass a residual branch at a drop rate in [0, 1)."""
    return max(int(batch * (1 - rate)), 1)


def add_residual(xs: Sequence[Tensor], branch: Branch, rate: float) -> list[Tensor]:
    """Compute ``x + branch(x)`` for each group of `xs`, each (B, N, C).

    At a `rate` above 0 only a random subset of the images passes the branch; the branch is scaled by B / kept, so that
    its expectation is unchanged.
    """
    if rate == 0.0:
        groups = [(x.shape[0], x.shape[1]) for x in xs]
        residual = branch(pack([x.flatten(0, 1) for x in xs]), groups)
        parts = residual.split([B * N for B, N in groups])
        return [x + part.view_as(x) for x, part in zip(xs, parts, strict=True)]
    kept = [torch.randperm(len(x), device=x.device)[: num_kept(len(x), rate)] for x in xs]
    subsets = [x[index] for x, index in zip(xs, kept, strict=True)]
    groups = [(x.shape[0], x.shape[1]) for x in subsets]
    residual = branch(pack([x.flatten(0, 1) for x in subsets]), groups)
    parts = residual.split([B * N for B, N in groups])
    return [
        torch.index_add(x, 0, index, part.view(len(index), *x.shape[1:]).to(x.dtype), alpha=len(x) / len(index))
        for x, index, part in zip(xs, kept, parts, strict=True)
    ]
