"""Reading of weights from files, without running code from them, and conversion of names of other libraries.

The names in this project are those of official DINOv2. Also known are checkpoints of its training (``teacher``,
``backbone.``, chunked blocks), timm, and transformers (the names on disk and those in memory).
"""

import math
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dinomed.backbones.vit import VisionTransformer, ViTConfig
from dinomed.errors import DinomedError, UsageError

State = dict[str, Tensor]
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")


def read_weights(path: str | Path) -> State:
    """Read the weights of a file, or of a folder with one of `FOLDER_FILES`, under the names of official DINOv2.

    Raises:
        UsageError: the file does not exist.
        DinomedError: the file is cut off, is no file of weights, or is a pickle that would run code.
    """
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in FOLDER_FILES if (path / name).is_file()), path / FOLDER_FILES[0])
    if not path.is_file():
        raise UsageError(f"weights {path} do not exist")
    return convert(_unwrap(_read(path), path))


def _read(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            start = file.read(9)
        if start[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
            return load_file(path)
        if not start.startswith((b"PK", b"\x80")):  # neither a zip archive nor a pickle
            what = "an empty file" if not start else "not a file of weights (.pth or .safetensors)"
            raise DinomedError(f"{path}: {what}")
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise DinomedError(f"{path}: a damaged safetensors file ({_first_sentence(error)})") from None
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise DinomedError(
            f"{path}: refused: it holds more than tensors{f' ({name[1]})' if name else ''}, and reading that may run "
            "its code; save its state dict as safetensors where you trust it"
        ) from None
    except OSError as error:
        raise DinomedError(f"{path} cannot be read: {error.strerror or error}") from None
    except DinomedError:
        raise
    except Exception as error:  # an unpickler raises any error on damaged bytes
        raise DinomedError(f"{path}: cut off, damaged, or not a file of weights ({_first_sentence(error)})") from None


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of the error of a library, at most 200 characters."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.split(r"\.\s", line)[0].removesuffix(".")[:200]


def _unwrap(data: Any, path: Path) -> State:
    """Return the tensors inside the usual outer dictionaries; the teacher's if there is a student too."""
    for key in ("teacher", "state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not data or not all(isinstance(value, Tensor) for value in data.values()):
        raise DinomedError(f"{path}: holds no table of tensors; give the state dict of a ViT")
    return data


def convert(state: Mapping[str, Tensor]) -> State:
    """Convert the names of any known library to those of official DINOv2, and values to float32. Unknown names stay, so
    that `differences` can list them."""
    state = _strip_prefix({str(key): value for key, value in state.items()})
    if any(key.startswith("embeddings.") for key in state):
        state = _from_transformers(state)
    state = _from_timm(_join(state))
    state = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): value for key, value in state.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


_PREFIXES = ("module.", "_orig_mod.", "backbone.", "dinov2.", "dinov2_with_registers.")
_HEADS = ("head.", "head_dist.", "classifier.", "dino_head.", "ibot_head.")


def _strip_prefix(state: State) -> State:
    """Remove prefixes of wrappers, and heads, which are no part of a backbone."""
    for prefix in _PREFIXES:
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        state = inside or state
    return {key: value for key, value in state.items() if not key.startswith(_HEADS)}


# (pattern of a name of transformers, on disk or in memory; our name)
_TRANSFORMERS = [
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"\.mlp\.down_proj\.", ".mlp.w3."),
]


def _from_transformers(state: State) -> State:
    out = {}
    for key, value in state.items():
        for theirs, ours in _TRANSFORMERS:
            key = re.sub(theirs, ours, key)
        out[key] = value
    return out


# Layers that other libraries split: our name, and their names in the order in which rows are concatenated.
_JOINED = [
    (".attn.qkv.", (".attn.query.", ".attn.key.", ".attn.value.")),
    (".mlp.w12.", (".mlp.gate_proj.", ".mlp.up_proj.")),
    (".mlp.w12.", (".mlp.fc1_g.", ".mlp.fc1_x.")),
]


def _join(state: State) -> State:
    out = dict(state)
    for ours, parts in _JOINED:
        for key in [key for key in out if parts[0] in key]:
            theirs = [key.replace(parts[0], part) for part in parts]
            if all(name in out for name in theirs):
                out[key.replace(parts[0], ours)] = torch.cat([out.pop(name) for name in theirs])
    return out


def _from_timm(state: State) -> State:
    """Convert names of timm.

    These are `reg_token`, a position embedding without a position of the class token (timm adds that to the token
    itself), and a packed SwiGLU under the names of an MLP, whose second layer is half as wide.
    """
    out = {"register_tokens" if key == "reg_token" else key: value for key, value in state.items()}
    position = out.get("pos_embed")
    if position is not None and position.ndim == 3 and _side(position.shape[1]) is not None:
        out["pos_embed"] = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
    for key in [key for key in out if key.endswith(".mlp.fc2.weight")]:
        block = key.removesuffix("fc2.weight")
        first = out.get(f"{block}fc1.weight")
        swiglu = f"{block}w12.weight" in out  # joined from fc1_g and fc1_x
        if swiglu or (first is not None and len(first) == 2 * out[key].shape[1]):
            names = [name for name in out if name.startswith((f"{block}fc1.", f"{block}fc2."))]
            for name in names:
                out[name.replace(".fc1.", ".w12.").replace(".fc2.", ".w3.")] = out.pop(name)
    return out


def _side(num_patches: int) -> int | None:
    side = math.isqrt(max(num_patches, 0))
    return side if side > 0 and side * side == num_patches else None


def build_with_weights(config: ViTConfig, state: Mapping[str, Tensor], source: str) -> VisionTransformer:
    """Build a ViT with the weights `state`, under the names of official DINOv2.

    If the position embedding is for another image size than that of `config`, the config follows it. A missing mask
    token (timm has none; frozen features do not need it) is set to zero.

    Raises:
        UsageError: the weights have another architecture; the differences are listed.
        DinomedError: the weights are integers.
    """
    position = state.get("pos_embed")
    side = _side(position.shape[1] - 1) if position is not None and position.ndim == 3 else None
    if side:
        config = config.model_copy(update={"image_size": side * config.patch_size})
    with torch.device("meta"):
        vit = VisionTransformer(config)
    state = {"mask_token": torch.zeros(1, config.embed_dim), **state}
    problems = differences({key: value.shape for key, value in vit.state_dict().items()}, state)
    if problems:
        raise UsageError(f"{source}: weights of another architecture: {'; '.join(problems)}")
    numbers = [key for key, value in state.items() if not value.is_floating_point()]
    if numbers:
        raise DinomedError(
            f"{source}: {len(numbers)} weights are {str(state[numbers[0]].dtype).removeprefix('torch.')}, not floating "
            f"point ({_few(numbers)})"
        )
    vit.load_state_dict(state, assign=True)
    return vit


def differences(expected: Mapping[str, torch.Size], state: Mapping[str, Tensor]) -> list[str]:
    """List the differences between `state` and the expected shapes; empty if there are none."""
    shapes = [
        f"{key} is {_shape(state[key].shape)}, expected {_shape(shape)}"
        for key, shape in expected.items()
        if key in state and state[key].shape != shape
    ]
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    kinds = [("of another shape", shapes), ("missing", missing), ("not known", unexpected)]
    return [f"{len(names)} {kind} ({_few(names)})" for kind, names in kinds if names]


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _few(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")


def inflate_channels(state: Mapping[str, Tensor], channels: int) -> State:
    """Convert weights to another number of input channels.

    Each new channel gets the mean kernel, scaled so that an image with equal channels gives the same tokens as before
    (RGB to grey: the sum of the three kernels).
    """
    kernel = state["patch_embed.proj.weight"]
    old_channels = kernel.shape[1]
    if old_channels == channels:
        return dict(state)
    new = (kernel.mean(dim=1, keepdim=True) * (old_channels / channels)).repeat(1, channels, 1, 1)
    return {**state, "patch_embed.proj.weight": new}
