"""Our training step without the three optimisations of section 5 of DINOv2, as in a simple ViT.

Global and local views have separate forward passes, not a packed sequence. Stochastic depth computes every residual and
multiplies the dropped ones by zero. Attention is ``softmax(q k^T) v`` with an explicit matrix. Everything else (losses,
feed-forward, optimiser, average) is unchanged, so a difference comes from these three.
"""

from collections.abc import Callable, Sequence
from types import MethodType

import torch
from torch import Tensor, nn

from dinomed.backbones.vit import Tokens
from dinomed.layers.attention import Attention
from dinomed.layers.block import Block
from dinomed.pretrain.model.dinov2 import DINOv2, ViewBatch, backbone_of


class PlainAttention(nn.Module):
    """Compute attention, (B, N, C) -> (B, N, C), with the layers of an `Attention`."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = attention.num_heads, attention.qkv, attention.proj

    def forward(self, x_BNC: Tensor) -> Tensor:
        B, N, C = x_BNC.shape
        q, k, v = self.qkv(x_BNC).view(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        weights_BHNN = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)
        return self.proj((weights_BHNN @ v).transpose(1, 2).reshape(B, N, C))


class PlainBlock(nn.Module):
    """A `Block` with the same layers and names that computes group by group."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = block.norm1, PlainAttention(block.attn), block.ls1
        self.norm2, self.mlp, self.ls2 = block.norm2, block.mlp, block.ls2
        self.drop_path = block.drop_path

    def forward(self, xs: Sequence[Tensor]) -> list[Tensor]:
        rate = self.drop_path if self.training else 0.0
        return [self._one(x, rate) for x in xs]

    def _one(self, x: Tensor, rate: float) -> Tensor:
        x = add_masked(x, lambda x: self.ls1(self.attn(self.norm1(x))), rate)
        return add_masked(x, lambda x: self.ls2(self.mlp(self.norm2(x))), rate)


def add_masked(x: Tensor, branch: Callable[[Tensor], Tensor], rate: float) -> Tensor:
    """Compute ``x + branch(x)`` of (B, N, C). At a `rate` above 0 the branch of each image is randomly scaled by
    ``1 / (1 - rate)`` or multiplied by zero (Huang et al. 2016, as in timm)."""
    residual = branch(x)
    if rate:
        residual = residual * (residual.new_empty(len(x), 1, 1).bernoulli_(1 - rate) / (1 - rate))
    return x + residual


def slow_down(model: DINOv2) -> None:
    """Convert student and teacher in place; the parameters stay the same objects under the same names."""
    for side in model.sides:
        backbone = backbone_of(side)
        for index, block in enumerate(backbone.blocks):
            assert isinstance(block, Block)
            backbone.blocks[index] = PlainBlock(block).train(block.training)
    model.student_tokens = MethodType(_view_apart, model)  # type: ignore[method-assign]


def _view_apart(model: DINOv2, batch: ViewBatch) -> list[Tokens]:
    """Do the work of `DINOv2.student_tokens` with a forward pass for each view size."""
    backbone = backbone_of(model.student)
    views = [backbone(batch.globals, batch.masks if model.objective.ibot_weight else None)]
    return [*views, backbone(batch.locals)] if len(batch.locals) else views
