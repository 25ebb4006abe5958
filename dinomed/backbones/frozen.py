"""Frozen backbones: a ViT with its preprocessing and its fingerprint, for features."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import MAX_IMAGE_SIZE, Tokens, VisionTransformer
from dinomed.errors import UsageError
from dinomed.images.intensity import IntensityConfig


class FrozenBackbone(nn.Module):
    """A backbone that computes tokens of images, without gradients and always in eval mode.

    Attributes:
        fingerprint: SHA-256, 64 hex digits, of everything that the features depend on; see `fingerprint`.
        source: path of the weights; None for the released weights of `name`.

    """

    def __init__(
        self, vit: VisionTransformer, preprocessing: Preprocessing, name: str,
        source: str | None = None, metadata: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if preprocessing.channels != vit.config.in_channels:
            raise UsageError(f"{name}: takes {vit.config.in_channels} channels, preprocessing {preprocessing.channels}")
        check_image_size(preprocessing.image_size, vit.config.patch_size)
        self.vit = vit.eval().requires_grad_(False)
        self.preprocessing, self.name, self.source = preprocessing, name, source
        self.metadata = dict(metadata or {})
        self.fingerprint = fingerprint(vit, preprocessing)
        self.embed_dim, self.patch_size = vit.config.embed_dim, vit.config.patch_size
        self.depth = vit.config.depth

    @property
    def device(self) -> torch.device:
        return self.vit.pos_embed.device

    def train(self, mode: bool = True) -> "FrozenBackbone":
        """Keep eval mode: training a head that contains the backbone must not turn stochastic depth on."""
        return super().train(False)

    @torch.no_grad()  # not inference_mode: its tensors cannot be inputs of a head in training
    def forward(self, images: Tensor, blocks: Sequence[int] = (-1,)) -> list[Tokens]:
        """Compute the tokens of each of `blocks` (0 is the first, -1 the last), after the final norm.

        Args:
            images: preprocessed, (B, channels, height, width), with sides that are multiples of the patch size.
        """
        return self.vit.forward_blocks(images.to(self.device), blocks)

    def grid(self, image_size: int | tuple[int, int] | None = None) -> tuple[int, int]:
        """Return (rows, columns) of patches for a square side or a (height, width), px; None is the size of the
        backbone's preprocessing."""
        size = self.preprocessing.image_size if image_size is None else image_size
        height, width = (size, size) if isinstance(size, int) else size
        return height // self.patch_size, width // self.patch_size


def check_image_size(image_size: int, patch_size: int) -> None:
    """Check that a backbone can take images of this size.

    Raises:
        UsageError: the size is over the limit, or not a multiple of the patch size; the nearest sizes are named.
    """
    if image_size > MAX_IMAGE_SIZE:
        raise UsageError(f"image size {image_size} is over the limit of {MAX_IMAGE_SIZE} px")
    below = image_size // patch_size * patch_size
    if image_size != below or not below:
        near = " or ".join(str(size) for size in (below, below + patch_size) if size)
        raise UsageError(f"image size {image_size} is not a multiple of the patch size {patch_size}; nearest: {near}")


def fingerprint(vit: VisionTransformer, preprocessing: Preprocessing) -> str:
    """Return the SHA-256, 64 hex digits, of architecture, preprocessing, and every weight (name, type, shape, bytes).

    The same weights from any file format get the same fingerprint. So it leaves out what only training uses (the mask
    token, stochastic depth). Of the class token and its position embedding it takes the sum, since only the sum is
    used.
    """
    training_only = {"drop_path", "layerscale", "image_size"}  # the last two are visible in the weights
    unusual = preprocessing.intensity != IntensityConfig()  # a default adds nothing
    head = {
        "architecture": vit.config.model_dump(mode="json", exclude=training_only),
        "preprocessing": preprocessing.model_dump(mode="json", exclude=None if unusual else {"intensity"}),
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    state = {key: value.detach().cpu() for key, value in vit.state_dict().items() if key != "mask_token"}
    position = state["pos_embed"]
    state["cls_token"], state["pos_embed"] = state["cls_token"] + position[:, :1], position[:, 1:]
    for key in sorted(state):
        value = state[key].contiguous()
        digest.update(f"\n{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(memoryview(value.view(torch.uint8).flatten().numpy()))
    return digest.hexdigest()
