"""Our own step without the three savings of DINOv2's section 5: what a straightforward ViT does in their place.

Separate forwards of global and local views instead of a packed sequence; stochastic depth that computes every residual
and then multiplies the dropped ones by zero; attention as ``softmax(q k^T) v``, its matrix written out. All else
(losses, feed-forward, optimiser, average) is the product's, so that a difference is of these three.
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
    """(B, N, C) -> (B, N, C) with the layers of an `Attention`."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = attention.num_heads, attention.qkv, attention.proj

    def forward(self, x_BNC: Tensor) -> Tensor:
        B, N, C = x_BNC.shape
        q, k, v = self.qkv(x_BNC).view(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        weights_BHNN = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)
        return self.proj((weights_BHNN @ v).transpose(1, 2).reshape(B, N, C))


class PlainBlock(nn.Module):
    """A `Block` with its own layers under their own names, group by group."""

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
    """``x + branch(x)`` of (B, N, C), at `rate` > 0 with the branch of each image kept by chance and scaled by
    ``1 / (1 - rate)``, or multiplied by zero (Huang et al. 2016, as in timm)."""
    residual = branch(x)
    if rate:
        residual = residual * (residual.new_empty(len(x), 1, 1).bernoulli_(1 - rate) / (1 - rate))
    return x + residual


def slow_down(model: DINOv2) -> None:
    """Student and teacher, in place; the parameters are the same objects under the same names."""
    for side in model.sides:
        backbone = backbone_of(side)
        for index, block in enumerate(backbone.blocks):
            assert isinstance(block, Block)
            backbone.blocks[index] = PlainBlock(block).train(block.training)
    model.student_tokens = MethodType(_view_apart, model)  # type: ignore[method-assign]


def _view_apart(model: DINOv2, batch: ViewBatch) -> list[Tokens]:
    """As `DINOv2.student_tokens`, with a forward pass for each size of views."""
    backbone = backbone_of(model.student)
    views = [backbone(batch.globals, batch.masks if model.objective.ibot_weight else None)]
    return [*views, backbone(batch.locals)] if len(batch.locals) else views
