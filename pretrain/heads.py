"""The projection head of DINO and iBOT: an MLP, an L2-normalised bottleneck, and prototypes of unit length."""

import itertools

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from dinomed.config import Config


class HeadConfig(Config):
    prototypes: int = Field(65536, ge=2)
    hidden: int = Field(2048, ge=1)
    bottleneck: int = Field(256, ge=1)
    layers: int = Field(3, ge=1)


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
        return linear(x, normalize(self.prototypes, dim=-1).to(x.dtype))
