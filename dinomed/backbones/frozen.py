"""Frozen backbones: a ViT with its preprocessing and its fingerprint, for features."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dinomed.backbones.config import MAX_IMAGE_SIZE
from dinomed.backbones.preprocessing import ADDED_SETTINGS, MAX_RATIO, Preprocessing
from dinomed.backbones.vit import TokenModel, Tokens, VisionTransformer
from dinomed.errors import UsageError


class FrozenBackbone(nn.Module):
    """A backbone that computes tokens of images, without gradients and always in eval mode.

    Attributes:
        model: the model that computes the tokens: dinomed's own ViT, or a module of another library.
        fingerprint: SHA-256, 64 hex digits, of everything that the features depend on; see `fingerprint`.
        source: path of the weights; None for weights that `name` alone finds: released ones, or those of a model hub.
        stated_statistics: whether mean and std were given by the user or assumed, since the weights name none.
            An adapter or an index then records them with the place of the backbone.
    """

    def __init__(
        self, model: TokenModel, preprocessing: Preprocessing, name: str, source: str | None = None,
        metadata: Mapping[str, Any] | None = None, *, stated_statistics: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if preprocessing.channels != model.in_channels:
            raise UsageError(f"{name}: takes {model.in_channels} channels, preprocessing {preprocessing.channels}")
        check_image_size(preprocessing.image_size, model.patch_size)
        if model.fixed_size not in (None, preprocessing.image_size):
            raise UsageError(
                f"{name}: a {model.family} model takes images of {model.fixed_size} px only, "
                f"not of {preprocessing.image_size} px"
            )
        if preprocessing.aspect == "keep":
            check_rectangles(model, preprocessing.image_size, name)
            preprocessing = preprocessing.model_copy(update={"patch_size": model.patch_size})
        elif preprocessing.patch_size is not None:
            preprocessing = preprocessing.model_copy(update={"patch_size": None})
        self.model = model.eval().requires_grad_(False)
        self.preprocessing, self.name, self.source = preprocessing, name, source
        self.metadata, self.stated_statistics = dict(metadata or {}), stated_statistics
        self.fingerprint = fingerprint(model, preprocessing)
        self.embed_dim, self.patch_size, self.depth = model.embed_dim, model.patch_size, model.depth

    @property
    def vit(self) -> VisionTransformer:
        """The model as a ViT of dinomed, for what needs its parts.

        Raises:
            UsageError: the model is of another library.
        """
        return require_vit(self.model, self.name)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def train(self, mode: bool = True) -> "FrozenBackbone":
        """Keep eval mode: training a head that contains the backbone must not turn stochastic depth on."""
        return super().train(False)

    @torch.no_grad()  # not inference_mode: its tensors cannot be inputs of a head in training
    def forward(self, images: Tensor, blocks: Sequence[int] = (-1,)) -> list[Tokens]:
        """Compute the tokens of each of `blocks` (0 is the first, -1 the last), after the final norm.

        Args:
            images: preprocessed, (B, channels, height, width), with sides that are multiples of the patch size.
        """
        return self.model.forward_blocks(images.to(self.device), blocks)

    def grid(self, image_size: int | tuple[int, int] | None = None) -> tuple[int, int]:
        """Return (rows, columns) of patches for a square side or a (height, width), px; None is the size of the
        backbone's preprocessing."""
        size = self.preprocessing.image_size if image_size is None else image_size
        height, width = (size, size) if isinstance(size, int) else size
        return height // self.patch_size, width // self.patch_size

    def describe(self) -> dict[str, Any]:
        """Return the name, the fingerprint and the size of images, for reports."""
        return {
            "backbone": {"name": self.name, "fingerprint": self.fingerprint},
            "image_size": self.preprocessing.image_size,
            "aspect": self.preprocessing.aspect,
        }


def require_vit(model: TokenModel, name: str) -> VisionTransformer:
    """Return the model as a ViT of dinomed.

    Raises:
        UsageError: the model is of another library.
    """
    if not isinstance(model, VisionTransformer):
        raise UsageError(
            f"backbone {name} is a {model.family} model, which dinomed uses frozen: for features, heads, probe, index, "
            "predict, demo and export of heads, and as a teacher with distill.method=features. Pretraining, "
            "fine-tuning, LoRA and export to timm and transformers need a ViT of the DINOv2 family"
        )
    return model


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


def check_rectangles(model: TokenModel, image_size: int, name: str) -> None:
    """Check that a model can take the rectangles of `aspect` keep.

    Args:
        image_size: shorter side of the rectangles, px.
        name: of the backbone, for the message.

    Raises:
        UsageError: it takes squares of one size only, or the longest side is over the limit.
    """
    if model.fixed_size is not None:
        raise UsageError(
            f"{name}: a {model.family} model takes squares of {model.fixed_size} px only, no rectangles (aspect keep); "
            "use `aspect=pad` or `aspect=square`"
        )
    if MAX_RATIO * image_size > MAX_IMAGE_SIZE:
        raise UsageError(
            f"image size {image_size} with aspect keep: longer sides of up to {MAX_RATIO * image_size} px are over the "
            f"limit of {MAX_IMAGE_SIZE} px; use an image size of at most {MAX_IMAGE_SIZE // MAX_RATIO} px"
        )


def fingerprint(model: TokenModel, preprocessing: Preprocessing) -> str:
    """Return the SHA-256, 64 hex digits, of architecture, preprocessing, and every weight (name, type, shape, bytes).

    The same weights from any file format get the same fingerprint. So for dinomed's ViT it leaves out what only
    training uses (the mask token, stochastic depth). Of the class token and its position embedding it takes the sum,
    since only the sum is used.
    """
    defaults = {
        name for name in ADDED_SETTINGS if getattr(preprocessing, name) == Preprocessing.model_fields[name].default
    }
    head = {
        "architecture": model.architecture(),
        "preprocessing": preprocessing.model_dump(mode="json", exclude=defaults),
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    if isinstance(model, VisionTransformer):
        state.pop("mask_token")
        if (position := state.get("pos_embed")) is not None:
            state["cls_token"], state["pos_embed"] = state["cls_token"] + position[:, :1], position[:, 1:]
    for key in sorted(state):
        value = state[key].contiguous()
        digest.update(f"\n{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(memoryview(value.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
