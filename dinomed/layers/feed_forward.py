"""The two feed-forward layers of DINOv2: MLP (distilled models) and SwiGLU (trained from scratch)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, silu


class MLP(nn.Module):
    """Linear, GELU, linear: (..., C) -> (..., C)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        # not if LoRA wraps fc2, and not under autocast, which does not see inside the function
        plain = type(self.fc2) is nn.Linear and not torch.is_autocast_enabled(x.device.type)
        if plain and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            out: Tensor = _GeluLinear.apply(hidden, self.fc2.weight, self.fc2.bias)
            return out
        return self.fc2(self.act(hidden))


class _GeluLinear(torch.autograd.Function):
    """``linear(gelu(x), w, b)`` that keeps only x for the backward pass and computes its GELU again there.

    A block keeps 19 times the width of a token for the backward pass; this saves 4 of the 19, for one more GELU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear(gelu(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        flat = gradients[0].flatten(0, -2)
        to_weight = flat.T @ gelu(x).flatten(0, -2) if needs_weight else None
        to_x = torch.ops.aten.gelu_backward(gradients[0] @ weight, x) if needs_x else None
        return to_x, to_weight, flat.sum(0) if needs_bias else None


class SwiGLU(nn.Module):
    """Gated SiLU (Shazeer 2020): (..., C) -> (..., C).

    `hidden` is the hidden width of the MLP that it replaces. The layer uses 2/3 of it, rounded up to a multiple of 8,
    which keeps the number of parameters.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(silu(gate) * value)
