"""Projection head of DINO and iBOT: an MLP, an L2-normalised bottleneck, and prototypes of unit length.

Shape suffixes: K prototypes, C width of the bottleneck.
"""

import itertools
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from dinomed.config import Config


class ProjectionHeadConfig(Config):
    """Sizes of a projection head."""

    prototypes: int = Field(65536, ge=2, le=2**22, description="number of outputs")
    hidden: int = Field(2048, ge=1, le=65_536, description="width of the hidden layers")
    bottleneck: int = Field(256, ge=1, le=65_536, description="width before the prototypes")
    layers: int = Field(3, ge=1, le=32, description="linear layers up to the bottleneck")


class ProjectionHead(nn.Module):
    """(..., C) -> (..., K): cosine similarities of the bottleneck to K prototypes, in [-1, 1].

    The last layer is the weight-normalised layer of the reference code with g = 1; only the direction is a parameter.
    There is no batch norm. The epsilon of the L2 norm is safe in half precision.
    """

    def __init__(self, dim: int, config: ProjectionHeadConfig) -> None:
        super().__init__()
        widths = [dim, *[config.hidden] * (config.layers - 1), config.bottleneck]
        modules: list[nn.Module] = []
        for in_features, out_features in itertools.pairwise(widths):
            modules += [nn.Linear(in_features, out_features), nn.GELU()]
        self.mlp = nn.Sequential(*modules[:-1])
        self.prototypes = nn.Parameter(torch.empty(config.prototypes, config.bottleneck))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (..., K) of features (..., dim)."""
        x = self.mlp(x)
        x = normalize(x, dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12)
        logits: Tensor = _Cosine.apply(x, self.prototypes)
        return logits


class _Cosine(torch.autograd.Function):
    """``x @ normalize(w).T`` without a normalised copy of w, which would be the largest tensor of a small model.

    The product is scaled instead, and the gradient of w is computed in place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_KC: Tensor) -> Tensor:
        inverse_norm_K = 1 / w_KC.norm(dim=-1).clamp_min(1e-12)
        ctx.save_for_backward(x, w_KC, inverse_norm_K)
        return linear(x, w_KC.to(x.dtype)).mul_(inverse_norm_K.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, w_KC, inverse_norm_K = ctx.saved_tensors
        gradient = (gradients[0] * inverse_norm_K.to(x.dtype)).flatten(0, -2)
        x_gradient = (gradient @ w_KC.to(x.dtype)).view_as(x) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return x_gradient, None
        w_gradient_KC = (gradient.T @ x.flatten(0, -2)).to(w_KC.dtype)
        # the length of w does not change the output: remove the part of the gradient along w
        along_K = torch.einsum("kc,kc->k", w_KC, w_gradient_KC) * inverse_norm_K.square()  # no tensor of size K x C
        return x_gradient, w_gradient_KC.addcmul_(w_KC, along_K.unsqueeze(-1).to(w_KC.dtype), value=-1)
