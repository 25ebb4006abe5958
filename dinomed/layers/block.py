"""The transformer block of DINOv2: pre-norm attention and feed-forward layer, LayerScale, stochastic depth by
slicing."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dinomed.layers.attention import Attention
from dinomed.layers.feed_forward import MLP, SwiGLU
from dinomed.layers.packed_attention import Group
from dinomed.layers.stochastic_depth import add_residual

FEED_FORWARD = {"mlp": MLP, "swiglu": SwiGLU}


class LayerScale(nn.Module):
    """A learned factor for each channel (Touvron et al. 2021, "Going deeper with image transformers", CaiT)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """A transformer block. It takes a list of groups of crops, each (B, N, C), and returns a list of the same
    shapes."""

    def __init__(
        self, dim: int, num_heads: int, *, feed_forward: str, hidden: int, layerscale: float | None, drop_path: float,
        norm_eps: float = 1e-6,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads)
        self.ls1 = nn.Identity() if layerscale is None else LayerScale(dim, layerscale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = FEED_FORWARD[feed_forward](dim, hidden)
        self.ls2 = nn.Identity() if layerscale is None else LayerScale(dim, layerscale)
        self.drop_path = drop_path

    def _attention(self, x_TC: Tensor, groups: Sequence[Group], rotations: Sequence[Tensor] | None = None) -> Tensor:
        return self.ls1(self.attn(self.norm1(x_TC), groups, rotations))

    def _feed_forward(self, x_TC: Tensor, groups: Sequence[Group]) -> Tensor:
        return self.ls2(self.mlp(self.norm2(x_TC)))

    def forward(self, xs: Sequence[Tensor], rotations: Sequence[Tensor] | None = None) -> list[Tensor]:
        rate = self.drop_path if self.training else 0.0
        attention = self._attention if rotations is None else partial(self._attention, rotations=rotations)
        return add_residual(add_residual(xs, attention, rate), self._feed_forward, rate)
