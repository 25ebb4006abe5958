"""Export of backbones to the folder formats of timm and transformers.

Each library resizes the position embedding by its own rule. So the embedding is written for the image size of the
backbone, at which it is not resized and features are the same; at other sizes they differ slightly.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinomed.adapters.export.parity import compare
from dinomed.adapters.export.source import ExportSource
from dinomed.backbones.config import ViTConfig
from dinomed.backbones.families.statistics import PROCESSOR_FILE, timm_reading, transformers_processor
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.errors import UsageError
from dinomed.io.files import write_json
from dinomed.io.tensor_file import write_tensors
from dinomed.layers.patch_embedding import resize_position_embedding

State = dict[str, Tensor]


def write_timm(backbone: FrozenBackbone, folder: Path) -> dict[str, Any]:
    """Write a folder for ``timm.create_model("local-dir:FOLDER", pretrained=True)``; compare with timm if installed."""
    config, reading = backbone.vit.config, backbone.preprocessing
    state = _at_own_size(backbone)
    registers = config.num_registers > 0
    state.pop("mask_token")
    if registers:  # with registers, timm has no position for the class token
        state["reg_token"] = state.pop("register_tokens")
        position = state["pos_embed"]
        state["cls_token"], state["pos_embed"] = state["cls_token"] + position[:, :1], position[:, 1:]
    arguments: dict[str, Any] = {
        "img_size": reading.image_size, "patch_size": config.patch_size, "in_chans": config.in_channels,
        "embed_dim": config.embed_dim, "depth": config.depth, "num_heads": config.num_heads,
        "init_values": None if config.layerscale is None else 1e-5, "mlp_ratio": config.mlp_ratio,
        "reg_tokens": config.num_registers, "no_embed_class": registers,
    }  # fmt: skip
    if config.feed_forward == "swiglu":
        state = {
            name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): v for name, v in state.items()
        }
        wide = len(state["blocks.0.mlp.fc1.weight"])
        arguments["mlp_ratio"] = (wide + 0.5) / config.embed_dim  # timm truncates the product to an integer
        name = "vit_giant_patch14_reg4_dinov2" if registers else "vit_giant_patch14_dinov2"
    else:
        name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    write_tensors(folder / "model.safetensors", state, {"format": "pt"})
    write_json(
        folder / "config.json",
        {
            "architecture": name,
            "num_classes": 0,
            "num_features": config.embed_dim,
            "global_pool": "token",
            "model_args": arguments,
            "pretrained_cfg": {
                "custom_load": False, **timm_reading(reading), "num_classes": 0,
                "pool_size": None, "first_conv": "patch_embed.proj", "classifier": "head",
            },
        },
    )  # fmt: skip
    try:
        import timm
    except ImportError:
        return {"compared_with": None, "note": "timm is not installed: not checked"}
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return _compare(backbone, "timm", theirs.forward_features)


def write_transformers(backbone: FrozenBackbone, folder: Path) -> dict[str, Any]:
    """Write a folder for ``AutoModel.from_pretrained(FOLDER)``; compare with transformers if installed.

    Raises:
        UsageError: the MLP ratio is not an integer, which the config of transformers requires.
    """
    config, reading = backbone.vit.config, backbone.preprocessing
    if config.mlp_ratio != int(config.mlp_ratio):
        raise UsageError(
            f"`format=transformers`: its config needs an integer MLP ratio, this backbone has {config.mlp_ratio}"
        )
    kind = "dinov2_with_registers" if config.num_registers else "dinov2"
    write_tensors(folder / "model.safetensors", to_transformers(_at_own_size(backbone), config), {"format": "pt"})
    about: dict[str, Any] = {
        "architectures": ["Dinov2WithRegistersModel" if config.num_registers else "Dinov2Model"],
        "model_type": kind,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "mlp_ratio": int(config.mlp_ratio),
        "hidden_act": "gelu",
        "layer_norm_eps": config.norm_eps,
        "image_size": reading.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.in_channels,
        "qkv_bias": True,
        "layerscale_value": 1.0,
        "drop_path_rate": 0.0,
        "use_swiglu_ffn": config.feed_forward == "swiglu",
        "torch_dtype": "float32",
    }
    if config.num_registers:
        about["num_register_tokens"] = config.num_registers
    write_json(folder / "config.json", about)
    write_json(folder / PROCESSOR_FILE, transformers_processor(reading, "BitImageProcessor"))
    try:
        from transformers import AutoModel
        from transformers.utils.logging import disable_progress_bar
    except ImportError:
        return {"compared_with": None, "note": "transformers is not installed: not checked"}
    disable_progress_bar()
    theirs = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    return _compare(backbone, "transformers", lambda pixels: theirs(pixels).last_hidden_state)


def to_transformers(state: State, config: ViTConfig) -> State:
    """Rename weights to those of transformers; add a LayerScale of 1, which it requires, if the backbone has none."""
    out: State = {}
    simple = {
        "cls_token": "embeddings.cls_token", "mask_token": "embeddings.mask_token",
        "register_tokens": "embeddings.register_tokens", "pos_embed": "embeddings.position_embeddings",
    }  # fmt: skip
    inner = [
        (".attn.proj.", ".attention.output.dense."), (".ls1.gamma", ".layer_scale1.lambda1"),
        (".ls2.gamma", ".layer_scale2.lambda1"), (".mlp.w12.", ".mlp.weights_in."), (".mlp.w3.", ".mlp.weights_out."),
    ]  # fmt: skip
    for name, value in state.items():
        if name in simple:
            out[simple[name]] = value
        elif name.startswith("patch_embed.proj."):
            out[name.replace("patch_embed.proj.", "embeddings.patch_embeddings.projection.")] = value
        elif name.startswith("norm."):
            out[f"layernorm.{name.removeprefix('norm.')}"] = value
        elif ".attn.qkv." in name:
            base, end = name.replace("blocks.", "encoder.layer.", 1).split(".attn.qkv.")
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[f"{base}.attention.attention.{part}.{end}"] = rows
        else:
            theirs = name.replace("blocks.", "encoder.layer.", 1)
            for ours, other in inner:
                theirs = theirs.replace(ours, other)
            out[theirs] = value
    if config.layerscale is None:
        for index in range(config.depth):
            for number in (1, 2):
                out[f"encoder.layer.{index}.layer_scale{number}.lambda1"] = torch.ones(config.embed_dim)
    return out


def _at_own_size(backbone: FrozenBackbone) -> State:
    """Return the weights, with the position embedding resized to the image size of the backbone."""
    config = backbone.vit.config
    if config.position == "rope":
        raise UsageError("a backbone with rotary positions cannot be written in this format; use `format=safetensors`")
    if config.stem == "convolutional":
        raise UsageError(
            "a backbone with a convolutional stem cannot be written in this format; use `format=safetensors`"
        )
    state = {name: value.detach().cpu().clone() for name, value in backbone.vit.state_dict().items()}
    position = state["pos_embed"]
    grid = resize_position_embedding(
        position[:, 1:], backbone.grid(), antialias=config.position_antialias, offset=config.position_offset
    )
    state["pos_embed"] = torch.cat([position[:, :1], grid], dim=1)
    return state


def _compare(backbone: FrozenBackbone, library: str, forward: Any) -> dict[str, Any]:
    """Compare all tokens of the model that the library loaded from the folder."""
    first, side = 1 + backbone.vit.config.num_registers, backbone.preprocessing.image_size

    def tokens_of(pixels: Tensor) -> list[Tensor]:
        tokens = forward(pixels)
        return [tokens[:, 0], tokens[:, first:].transpose(1, 2).unflatten(2, backbone.grid())]

    return compare(ExportSource(backbone), library, tokens_of, [(2, side, side)])
