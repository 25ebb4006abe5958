"""Attentive classifier: a learned query pools the patch tokens, instead of their mean.

This is cross-attention with one query that does not depend on the image (Yu et al. 2022, CoCa, section 3.2; Bardes et
al. 2024, V-JEPA, section 4). So the keys can be folded into the query, and values can be pooled before their
projection: the result is the same with one (P x C) by (C x heads) product instead of two (P x C) by (C x C) products.

With `registers`, learned tokens are pooled together with the patch tokens. They take the attention of a head that finds
nothing in the image, as the registers of a ViT take that of its patches (Darcet et al. 2024, section 2.2).
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from dinomed.adapters.adapter import ADAPTERS, Adapter, HeadConfig
from dinomed.features.compute import Features


class AttentiveConfig(HeadConfig):
    """Settings: `heads` of the attention; `with_cls` concatenates the class token with the pooled patch tokens;
    `registers`, the number of learned tokens that are pooled with the patch tokens."""

    name: str = "attentive"
    heads: int = Field(8, ge=1, description="heads of the attention")
    with_cls: bool = Field(True, description="concatenate the class token with the pooled patch tokens")
    registers: int = Field(0, ge=0, le=64, description="learned tokens that are pooled with the patch tokens")


@ADAPTERS.register("classify.attentive")
class AttentiveClassifier(Adapter):
    """LayerNorm on patch tokens, attention pooling, and a linear layer."""

    task, Config = "classify", AttentiveConfig
    uses_patches = True
    fit_defaults: ClassVar = {"optimizer": "adamw", "epochs": 30, "patience": 6, "batch_size": 64, "weight_decay": 0.05}

    def __init__(self, config: AttentiveConfig, embed_dim: int, num_classes: int) -> None:
        super().__init__(config, embed_dim, num_classes)
        width = embed_dim * len(config.blocks)
        heads = next(heads for heads in range(min(config.heads, width), 0, -1) if width % heads == 0)
        self.norm = nn.LayerNorm(width)
        self.registers = nn.Parameter(torch.randn(config.registers, width) * 0.02) if config.registers else None
        self.query = nn.Parameter(torch.randn(width, heads) * width**-0.5)
        self.value = nn.Parameter(torch.randn(heads, width, width // heads) * width**-0.5)
        self.pooled_norm = nn.LayerNorm(width)
        self.cls_norm = nn.LayerNorm(width) if config.with_cls else None
        self.linear = nn.Linear(width * (2 if config.with_cls else 1), num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def attention(self, features: Features) -> Tensor:
        """Return the attention weights (B, heads, rows, columns); each map sums to 1, or less with registers."""
        assert features.patches is not None
        rows, columns = features.patches.shape[-2:]
        weights = self._weights(self._tokens(features))[:, : rows * columns]
        return weights.transpose(1, 2).unflatten(2, (rows, columns))

    def forward(self, features: Features) -> Tensor:
        tokens = self._tokens(features)
        pooled = self._weights(tokens).transpose(1, 2) @ tokens  # B, heads, width
        embedding = self.pooled_norm(torch.einsum("bhc,hcd->bhd", pooled, self.value).flatten(1))
        if self.cls_norm is not None:
            embedding = torch.cat([embedding, self.cls_norm(features.cls)], dim=1)
        return self.linear(embedding)

    def _tokens(self, features: Features) -> Tensor:
        """Return the patch tokens and then the registers, (B, tokens, width)."""
        assert features.patches is not None
        tokens = self.norm(features.patches.flatten(2).transpose(1, 2))
        if self.registers is None:
            return tokens
        return torch.cat([tokens, self.registers.expand(len(tokens), -1, -1)], dim=1)

    def _weights(self, tokens: Tensor) -> Tensor:
        return (tokens @ self.query).softmax(dim=1)  # B, tokens, heads
