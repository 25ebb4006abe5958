"""Attention of the last block, by head (Caron et al. 2021, DINO, figure 3; registers: Darcet et al. 2023).

Shape suffixes: B images, H heads, Q query tokens, N tokens, D channels a head.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.vit import VisionTransformer
from dinomed.errors import UsageError
from dinomed.features.finite import check_finite
from dinomed.layers.rotary_position import rotate

# of the largest output of the block: the order of float32 sums gives differences of 1e-6
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class LastAttention:
    """Attention weights of the class token and the registers in the last block.

    Attributes:
        weights: float32 (B, H, Q, N); each row sums to 1. The queries are the class token and the R registers, so Q is
            1 + R; the keys are the class token, the registers, and the patches row by row.
        grid: rows and columns of patches.
    """

    weights: np.ndarray
    grid: tuple[int, int]

    @property
    def num_registers(self) -> int:
        """Number of registers, 0 for a backbone without."""
        return self.weights.shape[2] - 1

    def maps(self, query: int = 0) -> np.ndarray:
        """Return the attention to the patches, float32 (B, H, rows, columns), of the class token (query 0) or of a
        register (1 to R). Each map sums to less than 1; the rest goes to the class token and the registers."""
        first = self.weights.shape[2]
        return self.weights[:, :, query, first:].reshape(*self.weights.shape[:2], *self.grid)

    def shares(self, query: int = 0) -> np.ndarray:
        """Return the shares that go to the class token, to each register and to all patches, (B, H, 1 + R + 1)."""
        first = self.weights.shape[2]
        patches = self.weights[:, :, query, first:].sum(axis=-1, keepdims=True)
        return np.concatenate([self.weights[:, :, query, :first], patches], axis=-1)


@torch.no_grad()
def last_attention(backbone: FrozenBackbone, pixels: Tensor) -> LastAttention:
    """Compute the attention of the last block from its own query and key projections.

    Args:
        backbone: a ViT of dinomed. What is computed is checked against the output of the block itself.
        pixels: preprocessed images (B, channels, height, width).

    Raises:
        UsageError: the backbone has no such attention; it is named.
        NotFiniteError: the attention of an image is not finite.
    """
    vit = backbone.model
    if not isinstance(vit, VisionTransformer):
        raise _no_attention(backbone, f"is a {vit.family} model, whose attention is not known")
    images = pixels.to(backbone.device)
    xs, rotations = [vit.embed(images)], vit.rotations([images])
    for earlier in vit.blocks[:-1]:
        xs = earlier(xs, rotations)
    block: Any = vit.blocks[-1]
    x_BNC, attention = block.norm1(xs[0]), block.attn
    B, N, C = x_BNC.shape
    H, first = attention.num_heads, 1 + vit.config.num_registers
    qkv_T3HD = attention.qkv(x_BNC).view(B * N, 3, H, C // H)
    if rotations is not None:
        qkv_T3HD = rotate(qkv_T3HD, [(B, N)], rotations)
    q, k, v = qkv_T3HD.view(B, N, 3, H, C // H).permute(2, 0, 3, 1, 4).float()
    weights = (q[:, :, :first] @ k.transpose(-2, -1) / (C // H) ** 0.5).softmax(dim=-1)
    check_finite("attention weights", weights)
    computed = attention.proj((weights @ v).transpose(1, 2).reshape(B, first, C).to(x_BNC.dtype))
    expected = attention(x_BNC.reshape(B * N, C), [(B, N)], rotations).view(B, N, C)[:, :first]
    if (computed - expected).abs().max() > _TOLERANCE * expected.abs().max().clamp_min(1e-6):
        raise _no_attention(backbone, "does not compute its attention from queries and keys alone")
    return LastAttention(weights.cpu().numpy(), backbone.grid((pixels.shape[-2], pixels.shape[-1])))


def _no_attention(backbone: FrozenBackbone, reason: str) -> UsageError:
    return UsageError(f"backbone {backbone.name} {reason}; `show pca`, match, similarity and map work with it")


def mass_mask(maps: np.ndarray, mass: float = 0.6) -> np.ndarray:
    """Select the fewest patches that hold a share of the attention of each map (DINO, figure 3 and its code).

    Args:
        maps: (..., rows, columns), not negative. Each map is scaled to sum 1 first.
        mass: 0 to 1.

    Returns:
        bool, of the same shape.

    >>> mass_mask(np.array([[4.0, 3.0], [2.0, 1.0]]), 0.6).tolist()
    [[True, True], [False, False]]
    """
    flat = maps.reshape(*maps.shape[:-2], -1).astype(np.float64)
    order = np.argsort(flat, axis=-1, kind="stable")
    rising = np.take_along_axis(flat, order, axis=-1)
    total = np.maximum(rising.sum(axis=-1, keepdims=True), 1e-300)
    kept = np.cumsum(rising, axis=-1) / total > 1 - mass + 1e-12  # what is left out holds at most 1 - mass
    mask = np.zeros(flat.shape, bool)
    np.put_along_axis(mask, order, kept, axis=-1)
    return mask.reshape(maps.shape)
