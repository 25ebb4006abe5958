"""Backbones and heads as modules for tracing, with a free batch size and, optionally, a free image size.

The computation of dinomed's own ViT is that of `dinomed.backbones.vit`. There, decisions depend on Python integers,
such as the image size, and a traced graph would fix them. Here these integers are tensors. Models of other libraries
are traced as they are, at one image size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dinomed.adapters.adapter import FeatureSpec
from dinomed.adapters.export.traceable import traceable
from dinomed.adapters.inference.ensemble.head import EnsembleHead, MemberBackbone
from dinomed.adapters.predictor import Predictor
from dinomed.backbones.vit import TokenModel, VisionTransformer
from dinomed.errors import UsageError
from dinomed.features.compute import Features
from dinomed.layers.rotary_position import rotation_table


class PortableViT(nn.Module):
    """A ViT from preprocessed images (B, channels, height, width) to the features of chosen blocks.

    Args:
        image_size: side of all images, px; None for any size that the patch size divides.
    """

    positions: Tensor  # 1, patches, C; only for a fixed image size and a learned table

    def __init__(self, vit: VisionTransformer, needs: FeatureSpec, image_size: int | None) -> None:
        super().__init__()
        self.vit, self.feature_spec, self.image_size = vit, needs, image_size
        self.block_indices = [block % vit.config.depth for block in needs.blocks]
        self.is_rotary = vit.config.position == "rope"
        if image_size is not None and not self.is_rotary:
            with torch.no_grad():
                blank = torch.zeros(1, vit.config.in_channels, image_size, image_size)
                grid = vit.embed(blank)[:, 1 + vit.config.num_registers :] - vit.patch_embed(blank)
            self.register_buffer("positions", grid, persistent=False)

    def forward(self, images: Tensor) -> Features:
        config = self.vit.config
        x = self.vit.patch_embed.grid(images)
        batch, rows, columns = x.shape[0], x.shape[2], x.shape[3]
        x = x.flatten(2).transpose(1, 2)
        first: Tensor = self.vit.cls_token
        table = None
        if self.is_rotary:
            prefix, head_dim = 1 + config.num_registers, config.embed_dim // config.num_heads
            table = rotation_table(rows, columns, prefix, head_dim, config.rope_theta, x.device).to(x.dtype)
        else:
            x = x + (self.positions if self.image_size is not None else self._positions(rows, columns))
            first = first + self.vit.pos_embed[:, :1]
        parts = [first.expand(batch, -1, -1), x]
        if config.num_registers:
            parts.insert(1, self.vit.register_tokens.expand(batch, -1, -1))
        x = torch.cat(parts, dim=1)
        outputs: dict[int, Tensor] = {}
        for index, block in enumerate(self.vit.blocks[: max(self.block_indices) + 1]):
            x = _apply_block(block, x, table)
            if index in self.block_indices:
                outputs[index] = self.vit.norm(x)
        tokens = [outputs[block] for block in self.block_indices]
        patches = torch.cat([output[:, 1 + config.num_registers :] for output in tokens], dim=-1)
        grid = (
            patches.transpose(1, 2).reshape(batch, patches.shape[-1], rows, columns)
            if self.feature_spec.patches
            else None
        )
        return Features(torch.cat([output[:, 0] for output in tokens], dim=-1), patches.mean(dim=1), grid, images)

    def _positions(self, rows: int, columns: int) -> Tensor:
        config = self.vit.config
        side = config.image_size // config.patch_size
        size = [torch.arange(count).to(torch.float32) for count in (rows, columns)]
        native = (size[0][-1] == side - 1) & (size[1][-1] == side - 1)  # no resizing is needed at the native size
        plain = torch.arange(side).to(torch.float32)
        left, right = (
            torch.where(
                native,
                (places[:, None] == plain).to(torch.float32),
                resampling(places, side, antialias=config.position_antialias, offset=config.position_offset),
            )
            for places in size
        )
        grid = self.vit.pos_embed[:, 1:].reshape(side, side, -1)
        return torch.einsum("ri,ijc,sj->rsc", left, grid, right).reshape(1, -1, config.embed_dim)


class PortableModel(nn.Module):
    """A model of another library from preprocessed images of one size to the features of chosen blocks.

    Raises:
        UsageError: a graph for any image size was requested.
    """

    def __init__(self, model: TokenModel, needs: FeatureSpec, image_size: int | None) -> None:
        super().__init__()
        if image_size is None:
            raise UsageError(
                f"a graph of a {model.family} model takes images of one size only; leave `dynamic_size` out"
            )
        self.model, self.feature_spec = model, needs
        self.rows = self.columns = image_size // model.patch_size

    def forward(self, images: Tensor) -> Features:
        tokens = self.model.forward_blocks(images, self.feature_spec.blocks)
        patches = torch.cat([token.patches for token in tokens], dim=-1)
        grid = patches.transpose(1, 2).unflatten(2, (self.rows, self.columns)) if self.feature_spec.patches else None
        return Features(torch.cat([token.cls for token in tokens], dim=-1), patches.mean(dim=1), grid, images)


def portable(model: TokenModel, needs: FeatureSpec, image_size: int | None) -> nn.Module:
    """Return the module that computes the features of a backbone, for tracing."""
    if isinstance(model, VisionTransformer):
        return PortableViT(model, needs, image_size)
    return PortableModel(model, needs, image_size)


class BackboneGraph(nn.Module):
    """Preprocessed images to `cls` (B, C) and `patches` (B, C, rows, columns) of the last block."""

    def __init__(self, model: TokenModel, image_size: int | None) -> None:
        super().__init__()
        self.backbone = portable(model, FeatureSpec((-1,), patches=True), image_size)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(pixels)
        assert features.patches is not None
        return features.cls, features.patches


class AdapterGraph(nn.Module):
    """Preprocessed images to the predictions of an adapter or an ensemble, in one pass of the whole image.

    A classifier returns calibrated probabilities (B, classes); a segmenter (B, classes, height, width) and a depth
    adapter (B, 1, height, width), at the size of its input. The members of an ensemble share the pass of a frozen
    backbone; a member whose backbone was tuned has its own. The graph returns their mean.

    With `logits` the output is that of the head, (B, C, rows, columns), at its own resolution; of an ensemble the
    channels of all members, one after the other.
    """

    def __init__(self, predictor: Predictor, image_size: int | None, logits: bool = False) -> None:
        super().__init__()
        self.logits = logits
        self.adapter = traceable(predictor.adapter, any_size=image_size is None)
        if isinstance(self.adapter, EnsembleHead):
            for place, part in self.adapter.extractors.items():
                assert isinstance(part, MemberBackbone)
                self.adapter.extractors[place] = portable(part.backbone.model, part.spec, image_size)
        self._predictor = predictor
        self.backbone = portable(predictor.backbone.model, predictor.adapter.feature_spec, image_size)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.backbone(pixels)
        if self.logits:
            logits: Tensor = self.adapter(features).float()
            return logits
        return self._predictor.outputs(self.adapter, features, pixels.shape[-2:])


def resampling(places: Tensor, side: int, *, antialias: bool, offset: float) -> Tensor:
    """Return the weights (N, side) of bicubic interpolation from `side` values to N values.

    They equal those of ``torch.nn.functional.interpolate``, but a graph can compute them for any N.

    Args:
        places: 0 to N - 1, float32.
        offset: `ViTConfig.position_offset`; the scale is side / (N + offset).
    """
    taps = torch.arange(side).to(places)
    scale = side / (places[-1] + 1 + offset)
    if antialias:
        centre = scale * (places + 0.5)
        weights = _cubic((taps + 0.5 - centre[:, None]) / scale.clamp_min(1.0), -0.5)
        return weights / weights.sum(dim=1, keepdim=True)
    source = scale * (places + 0.5) - 0.5
    first = source.floor()
    weights = torch.zeros_like(source)[:, None] * taps
    for step in (-1, 0, 1, 2):  # what lies beyond the border is the border
        tap = (first + step).clamp(0, side - 1)
        weights = weights + _cubic(source - first - step, -0.75)[:, None] * (tap[:, None] == taps).to(places)
    return weights


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Return the cubic convolution kernel (Keys 1981)."""
    x = distance.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _apply_block(block: Any, x: Tensor, table: Tensor | None) -> Tensor:
    """Apply a `dinomed.layers.block.Block` to tokens (B, N, C), with a `rotation_table` of rotary positions."""
    batch, count, width = x.shape
    heads = block.attn.num_heads
    qkv = block.attn.qkv(block.norm1(x)).reshape(batch, count, 3, heads, width // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if table is not None:
        q, k = _rotate(q, table), _rotate(k, table)
    out = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, width)
    x = x + block.ls1(block.attn.proj(out))
    return x + block.ls2(block.mlp(block.norm2(x)))


def _rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate queries or keys (B, heads, N, D) by a table (N, 2, D)."""
    first, second = x.chunk(2, dim=-1)
    return x * table[:, 0] + torch.cat([-second, first], dim=-1) * table[:, 1]
