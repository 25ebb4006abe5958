"""The architecture of a ViT, inferred from the names and shapes of its weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from dinomed.backbones.config import ViTConfig, grid_side
from dinomed.backbones.families.registry import LoadedFamily
from dinomed.backbones.families.statistics import build_preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.backbones.weights import build_with_weights, first_kernel, read_weights
from dinomed.errors import UsageError, first_line
from dinomed.log import logger

_HEADS = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16, 4096: 32}
"""Heads of published ViTs by their width (timm, DINOv2, DINOv3, MAE); at other widths a head has 64 channels."""
_RELEASED_SIDE = 37  # 518 px: the position embedding of the released DINOv2 models


def infer_config(state: Mapping[str, Tensor], source: str, **known: Any) -> ViTConfig:
    """Infer the architecture from weights under the names of official DINOv2 (`dinomed.backbones.weights.convert`).

    Width, depth, patch size, channels, registers, LayerScale, kind and width of the feed-forward layer, and image size
    are properties of the tensors. The number of heads is not; nor is the rule by which positions are resized.

    Args:
        state: the weights.
        source: path or name for messages.
        known: fields of `ViTConfig` that are known, such as `num_heads`.

    Raises:
        UsageError: the weights are not those of a ViT of the DINOv2 family; the reason is named.
    """
    kernel, cls_token = state.get("patch_embed.proj.weight"), state.get("cls_token")
    blocks = {int(key.split(".")[1]) for key in state if key.startswith("blocks.") and key.split(".")[1].isdigit()}
    if kernel is None or kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3] or not blocks:
        raise UsageError(f"{source}: no weights of a ViT (no square patch embedding, or no blocks)")
    if cls_token is None or cls_token.ndim != 3:
        raise UsageError(f"{source}: a ViT without a class token; give a folder with its config.json")
    if relative := next((key for key in state if "relative_position" in key or "rel_pos_bias" in key), None):
        raise UsageError(
            f"{source}: a ViT with relative position biases ({relative}), as in BEiT, which dinomed reads from a "
            "folder of timm or transformers only; give a folder with its config.json"
        )
    width, channels, patch = kernel.shape[0], state[first_kernel(state)].shape[1], kernel.shape[2]
    if halvings := sum(bool(re.fullmatch(r"patch_embed\.convs\.\d+\.weight", key)) for key in state):
        patch *= 2**halvings
    feed_forward, ratio = _feed_forward(state, width, source)
    registers = state.get("register_tokens")
    fields: dict[str, Any] = {
        "embed_dim": width, "depth": max(blocks) + 1, "patch_size": patch, "in_channels": channels,
        "stem": "convolutional" if halvings else "linear",
        "num_registers": 0 if registers is None else registers.shape[1],
        "feed_forward": feed_forward, "mlp_ratio": ratio,
        "layerscale": 1e-5 if "blocks.0.ls1.gamma" in state else None,
        "num_heads": _HEADS.get(width, max(width // 64, 1)),
    }  # fmt: skip
    position = state.get("pos_embed")
    if position is None:
        fields |= {"position": "rope", "norm_eps": 1e-5, "image_size": 16 * patch}  # DINOv3
    else:
        side = grid_side(position.shape[1] - 1) if position.ndim == 3 else None
        if side is None:
            raise UsageError(f"{source}: its position embedding {tuple(position.shape)} is of no square grid")
        fields["image_size"] = side * patch
        released = (patch, side) == (14, _RELEASED_SIDE) and not fields["num_registers"] and fields["layerscale"]
        if released:
            fields |= {"position_antialias": False, "position_offset": 0.1}
    try:
        return ViTConfig(**{**fields, **known})
    except ValidationError as error:
        raise UsageError(f"{source}: not an architecture that dinomed has ({first_line(error)})") from None


def _feed_forward(state: Mapping[str, Tensor], width: int, source: str) -> tuple[str, float]:
    """Return the kind of feed-forward layer, and its ratio to the width."""
    if "blocks.0.mlp.w3.weight" in state:
        hidden = state["blocks.0.mlp.w3.weight"].shape[1]
        for ratio in (4.0, 1.5 * hidden / width, (1.5 * hidden + 0.5) / width):
            if (int(int(width * ratio) * 2 / 3) + 7) // 8 * 8 == hidden:
                return "swiglu", ratio
        raise UsageError(f"{source}: a SwiGLU with a hidden width of {hidden}, which is no multiple of 8")
    if "blocks.0.mlp.fc1.weight" not in state:
        raise UsageError(f"{source}: no weights of a ViT (its blocks have no feed-forward layer that dinomed has)")
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    ratio = hidden / width
    return "mlp", ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def load_tensor_file(path: Path) -> LoadedFamily:
    """Load a file of weights alone (.safetensors, .pth). Its statistics are unknown.

    Raises:
        UsageError: the weights are not those of a ViT of the DINOv2 family.
        DinomedError: the file is damaged, or would run code when it is read.
    """
    state = read_weights(path)
    config = infer_config(state, str(path))
    vit = build_inferred(config, state, str(path))
    size = 224 // config.patch_size * config.patch_size
    preprocessing, _ = build_preprocessing(path, vit, {"image_size": size or config.patch_size})
    logger.info(
        f"{path}: {config.depth} blocks, {config.embed_dim} channels, {config.num_heads} heads (the usual number, "
        f"the tensors do not show it), patch {config.patch_size}, {config.num_registers} registers, "
        f"{config.feed_forward}"
    )
    return LoadedFamily(vit, preprocessing, known_statistics=False)


def build_inferred(config: ViTConfig, state: Mapping[str, Tensor], source: str) -> VisionTransformer:
    """Build a ViT with the weights `state`; layers without a bias get one of zeros."""
    zeros = {
        key.removesuffix("weight") + "bias": value.new_zeros(len(value))
        for key, value in state.items()
        if key.startswith("blocks.") and key.endswith((".attn.qkv.weight", ".mlp.w12.weight", ".mlp.w3.weight"))
    }
    return build_with_weights(config, {**zeros, **state}, source)
