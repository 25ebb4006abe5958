"""Projection head of DINO and iBOT: an MLP, an L2-normalised bottleneck, and weight-normalised prototypes.

Shape suffixes: K prototypes, C width of the bottleneck.
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from dinomed.layers.initialisation import init_linear_layers
from dinomed.pretrain.model.config import ProjectionHeadConfig


class ProjectionHead(nn.Module):
    """(..., C) -> (..., K): cosine similarities of the bottleneck to K prototypes, each times the prototype's norm.

    The last layer is the weight-normalised layer of the reference code: `prototypes` are its directions (``weight_v``;
    their length has no effect), `prototype_norms` are its norms (``weight_g``), which begin at 1. The norms are learned
    with weight decay and are frozen together with the directions (`optimizer.freeze_prototypes`). There is no batch
    norm. The epsilon of the L2 norm is safe in half precision.
    """

    prototype_norms: nn.Parameter | None

    def __init__(self, dim: int, config: ProjectionHeadConfig) -> None:
        super().__init__()
        widths = [dim, *[config.hidden] * (config.layers - 1), config.bottleneck]
        modules: list[nn.Module] = []
        for in_features, out_features in itertools.pairwise(widths):
            modules += [nn.Linear(in_features, out_features), nn.GELU()]
        self.mlp = nn.Sequential(*modules[:-1])
        self.prototypes = nn.Parameter(torch.empty(config.prototypes, config.bottleneck))
        init_linear_layers(self.mlp)
        if config.prototype_init == "linear":
            nn.init.kaiming_uniform_(self.prototypes, a=math.sqrt(5))  # nn.Linear.reset_parameters
        else:
            nn.init.trunc_normal_(self.prototypes, std=0.02)
        norms = nn.Parameter(torch.ones(config.prototypes, 1)) if config.learned_norm else None
        self.register_parameter("prototype_norms", norms)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (..., K) of features (..., dim)."""
        x = self.mlp(x)
        x = normalize(x, dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12)
        logits: Tensor = _WeightNormLinear.apply(x, self.prototypes, self.prototype_norms)
        return logits


class _WeightNormLinear(torch.autograd.Function):
    """``x @ (g * normalize(w)).T`` without a normalised copy of w, which would be the largest tensor of a small model.

    The product is scaled instead, and the gradient of w is computed in place. Without norms g is 1. Under autocast the
    products are in half precision, also where x is float32: CUDA normalises in float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_KC: Tensor, norm_K1: Tensor | None) -> Tensor:
        inverse_K = 1 / w_KC.norm(dim=-1).clamp_min(1e-12)
        scale_K = inverse_K if norm_K1 is None else inverse_K * norm_K1.squeeze(-1)
        logits: Tensor = linear(x, w_KC.to(x.dtype))
        ctx.save_for_backward(x.to(logits.dtype), w_KC, inverse_K, scale_K)
        return logits.mul_(scale_K.to(logits.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, w_KC, inverse_K, scale_K = ctx.saved_tensors
        gradient, x_gradient, norm_gradient_K1 = gradients[0].flatten(0, -2), None, None
        if ctx.needs_input_grad[0]:
            x_gradient = ((gradient * scale_K.to(x.dtype)) @ w_KC.to(x.dtype)).view_as(x)
        if not any(ctx.needs_input_grad[1:]):
            return x_gradient, None, None
        w_gradient_KC = (gradient.T @ x.flatten(0, -2)).to(w_KC.dtype)
        along_K = torch.einsum("kc,kc->k", w_KC, w_gradient_KC) * inverse_K  # no tensor of size K x C
        if ctx.needs_input_grad[2]:
            norm_gradient_K1 = along_K.unsqueeze(-1).to(w_KC.dtype)
        # the length of w does not change the output: remove the part of the gradient along w
        w_gradient_KC.addcmul_(w_KC, (along_K * inverse_K).unsqueeze(-1).to(w_KC.dtype), value=-1)
        return x_gradient, w_gradient_KC.mul_(scale_K.unsqueeze(-1).to(w_KC.dtype)), norm_gradient_K1
