"""The vision transformer of DINOv2 (Oquab et al. 2023; registers: Darcet et al. 2023), for any image size
and number of channels.

Pretraining and frozen use share this module. The keys of its state dict are those of the official code.

Shape suffixes: B images, N tokens, C channels of the embedding.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dinomed.backbones.config import ViTConfig
from dinomed.errors import UsageError
from dinomed.layers.block import Block
from dinomed.layers.initialisation import init_linear_layers
from dinomed.layers.patch_embedding import ConvolutionalPatchEmbedding, PatchEmbedding, resize_position_embedding
from dinomed.layers.rotary_position import rotation_table

if TYPE_CHECKING:
    from dinomed.backbones.preprocessing import Preprocessing

ADDED_SETTINGS = ("norm_eps", "position", "rope_theta", "stem")
"""Fields of `ViTConfig` that do not count for a fingerprint while they have their defaults."""


def resolve_indices(blocks: Sequence[int], depth: int) -> list[int]:
    """Return block numbers counted from 0, where negative ones count from the end.

    Raises:
        ValueError: `blocks` is empty, or a backbone with `depth` blocks has no such block.
    """
    indices = [block + depth if block < 0 else block for block in blocks]
    if not indices or any(not 0 <= block < depth for block in indices):
        raise ValueError(f"blocks {list(blocks)}: the backbone has blocks 0 to {depth - 1}")
    return indices


@dataclass(frozen=True)
class Tokens:
    """Tokens of B images after a block and the final norm."""

    cls: Tensor  # B, C
    registers: Tensor  # B, R, C (R may be 0)
    patches: Tensor  # B, rows * columns, C


class TokenModel(nn.Module):
    """The interface of a model that a frozen backbone needs: tokens of chosen blocks, and their dimensions.

    Attributes:
        family: name of its kind for messages, such as ``siglip (transformers)``.
        embed_dim: channels of a token.
        depth: number of blocks.
        patch_size: side of a patch, px.
        in_channels: channels of an image.
        fixed_size: side of the only square that it takes, px; None if it takes every multiple of the patch size, and
            rectangles.
    """

    family: str
    embed_dim: int
    depth: int
    patch_size: int
    in_channels: int
    fixed_size: int | None = None

    @abstractmethod
    def forward_blocks(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """Return the tokens after each of `blocks` (0 is the first, -1 the last) and the final norm."""

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """Return everything, except weights, that the tokens depend on, as values for JSON (for the fingerprint)."""

    def write_folder(self, folder: Path, preprocessing: "Preprocessing") -> None:
        """Write a folder that `load_backbone` reads as the same model, with the same fingerprint.

        A family without this method is used, but not exported to safetensors.

        Args:
            folder: an existing folder.
            preprocessing: its mean, std, image size and interpolation are written.

        Raises:
            UsageError: the family cannot write its models.
        """
        raise UsageError(f"a {self.family} model cannot be written as a folder; use `format=onnx` or `format=monai`")


class VisionTransformer(TokenModel):
    """A vision transformer. `forward` takes one batch; `forward_packed` takes several batches of different image
    sizes."""

    family = "dinomed"

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_dim, self.depth = config.embed_dim, config.depth
        self.patch_size, self.in_channels = config.patch_size, config.in_channels
        dim = config.embed_dim
        num_patches = (config.image_size // config.patch_size) ** 2
        stem = PatchEmbedding if config.stem == "linear" else ConvolutionalPatchEmbedding
        self.patch_embed = stem(config.patch_size, config.in_channels, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if config.position == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + num_patches, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        if config.num_registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.num_registers, dim))
        self.blocks = nn.ModuleList(
            Block(
                dim,
                config.num_heads,
                feed_forward=config.feed_forward,
                hidden=int(dim * config.mlp_ratio),
                layerscale=config.layerscale,
                drop_path=config.drop_path,
                norm_eps=config.norm_eps,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.checkpoint_activations = False  # recompute each block in the backward pass, to save memory
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise linear layers and positions from a truncated normal (0.02), as in the reference code."""
        if self.config.position == "learned":
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.config.num_registers:
            nn.init.normal_(self.register_tokens, std=1e-6)
        init_linear_layers(self.modules())

    def embed(self, images: Tensor, masks: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """Embed images (B, channels, height, width) as tokens (B, 1 + registers + patches, C).

        Args:
            masks: bool (B, patches): patches that are replaced by the mask token; None masks none. No token depends on
                their pixels, also with a convolutional stem.
            visible: bool (B, patches), with equal numbers in all rows: the patches that become tokens; None for all.

        Raises:
            ValueError: wrong number of channels, a side that is not a multiple of the patch size, or `visible` with
                rotary positions, which are those of whole images.
        """
        x = self.patch_embed(images, masks if visible is None else ~visible)
        if masks is not None:
            x = torch.where(masks.unsqueeze(-1), self.mask_token.to(x.dtype).unsqueeze(0), x)
        cls_token: Tensor = self.cls_token
        if self.config.position == "learned":
            rows, columns = (side // self.config.patch_size for side in images.shape[-2:])
            x = x + resize_position_embedding(
                self.pos_embed[:, 1:], (rows, columns),
                antialias=self.config.position_antialias, offset=self.config.position_offset,
            )  # fmt: skip
            cls_token = cls_token + self.pos_embed[:, :1]
        elif visible is not None:
            raise ValueError("rotary positions are those of whole images; `visible` needs a learned position embedding")
        if visible is not None:
            x = x[visible].view(len(x), -1, x.shape[-1])
        parts = [cls_token.expand(len(x), -1, -1), x]
        if self.config.num_registers:
            parts.insert(1, self.register_tokens.expand(len(x), -1, -1))
        return torch.cat(parts, dim=1)

    def rotations(self, crops: Sequence[Tensor]) -> list[Tensor] | None:
        """Return the rotation table of each batch of images; None without rotary positions."""
        config = self.config
        if config.position == "learned":
            return None
        prefix, head_dim = 1 + config.num_registers, config.embed_dim // config.num_heads
        tables = []
        for images in crops:
            rows, columns = (side // config.patch_size for side in images.shape[-2:])
            tables.append(rotation_table(rows, columns, prefix, head_dim, config.rope_theta, self.cls_token.device))
        return tables

    def _tokens(self, x: Tensor) -> Tokens:
        x = self.norm(x)
        start = 1 + self.config.num_registers
        return Tokens(cls=x[:, 0], registers=x[:, 1:start], patches=x[:, start:])

    def forward_packed(
        self, crops: Sequence[Tensor], masks: Sequence[Tensor | None], visible: Sequence[Tensor | None] | None = None
    ) -> list[Tokens]:
        """Run batches of different image sizes through the blocks as one packed sequence.

        The result equals a separate forward pass of each batch.

        Args:
            masks: a bool mask (B, patches) or None for each batch.
            visible: the patches of each batch that become tokens, as in `embed`; None for all patches of all batches.
        """
        shown = visible or [None] * len(crops)
        xs = [self.embed(*inputs) for inputs in zip(crops, masks, shown, strict=True)]
        tables = () if (rotations := self.rotations(crops)) is None else (rotations,)
        for block in self.blocks:
            recompute = self.checkpoint_activations and torch.is_grad_enabled()
            xs = checkpoint(block, xs, *tables, use_reentrant=False) if recompute else block(xs, *tables)
        return [self._tokens(x) for x in xs]

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tokens:
        """Return the tokens of the last block."""
        return self.forward_packed([images], [masks])[0]

    def architecture(self) -> dict[str, Any]:
        """Return the config without what only training uses, without what the shapes of the weights show, and without
        the defaults of settings that were added later: they must not change a fingerprint."""
        unseen = {"drop_path", "layerscale", "image_size"}
        later = {name for name in ADDED_SETTINGS if getattr(self.config, name) == ViTConfig.model_fields[name].default}
        return self.config.model_dump(mode="json", exclude=unseen | later)

    def forward_blocks(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """Return the tokens after each of `blocks` (0 is the first, -1 the last) and the final norm.

        Blocks after the last of `blocks` are not computed.

        Raises:
            ValueError: the backbone has no such block.
        """
        indices = resolve_indices(blocks, self.depth)
        tokens: dict[int, Tokens] = {}
        xs, rotations = [self.embed(images)], self.rotations([images])
        for index, block in enumerate(self.blocks[: max(indices) + 1]):
            xs = block(xs, rotations)
            if index in indices:
                tokens[index] = self._tokens(xs[0])
        return [tokens[block] for block in indices]
