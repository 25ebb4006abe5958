"""The projection head of DINO and iBOT: an MLP, an L2-normalised bottleneck, and prototypes of unit length."""

import itertools
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from dinomed.config import Config


class HeadConfig(Config):
    prototypes: int = Field(65536, ge=2, le=2**22)
    hidden: int = Field(2048, ge=1, le=65_536)
    bottleneck: int = Field(256, ge=1, le=65_536)
    layers: int = Field(3, ge=1, le=32)


class Head(nn.Module):
    """(..., C) -> (..., K): cosine similarities of the bottleneck to K prototypes, in [-1, 1].

    The last layer is the reference's weight-normalised one with g = 1; the direction alone is a parameter.
    No batch norm. The norm's epsilon is safe in half precision.
    """

    def __init__(self, dim: int, config: HeadConfig) -> None:
        super().__init__()
        widths = [dim, *[config.hidden] * (config.layers - 1), config.bottleneck]
        modules: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(widths):
            modules += [nn.Linear(wide, narrow), nn.GELU()]
        self.mlp = nn.Sequential(*modules[:-1])
        self.prototypes = nn.Parameter(torch.empty(config.prototypes, config.bottleneck))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp(x)
        x = normalize(x, dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12)
        scores: Tensor = _Cosine.apply(x, self.prototypes)
        return scores


class _Cosine(torch.autograd.Function):
    """``x @ normalize(w).T`` without the normalised copy of w, which is the largest tensor of a small model: the
    product is scaled instead, and w's gradient is made in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_KC: Tensor) -> Tensor:
        inverse_K = 1 / w_KC.norm(dim=-1).clamp_min(1e-12)
        ctx.save_for_backward(x, w_KC, inverse_K)
        return linear(x, w_KC.to(x.dtype)).mul_(inverse_K.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, w_KC, inverse_K = ctx.saved_tensors
        gradient = (gradients[0] * inverse_K.to(x.dtype)).flatten(0, -2)
        to_x = (gradient @ w_KC.to(x.dtype)).view_as(x) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return to_x, None
        to_w = (gradient.T @ x.flatten(0, -2)).to(w_KC.dtype)
        # what lengthens w changes nothing: take the part along w away
        along_K = torch.einsum("kc,kc->k", w_KC, to_w) * inverse_K.square()  # no product of that size
        return to_x, to_w.addcmul_(w_KC, along_K.unsqueeze(-1).to(w_KC.dtype), value=-1)
