"""Reading of weights from files, without running code from them, and conversion of names of other libraries.

The names in this project are those of official DINOv2. Also known are checkpoints of its training (``teacher``,
``backbone.``, chunked blocks), official DINOv3, timm, and transformers (the names on disk and those in memory).
"""

import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dinomed.backbones.config import ViTConfig, grid_side
from dinomed.backbones.vit import VisionTransformer
from dinomed.errors import DinomedError, UsageError
from dinomed.io.files import read_json
from dinomed.io.weight_file import find_tensor_table, read_weight_file
from dinomed.log import logger

State = dict[str, Tensor]
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
INDEX_FILE = "model.safetensors.index.json"
STEM_KERNEL = "patch_embed.convs.0.weight"  # only in a backbone with a convolutional stem
"""List of the shards of weights that are kept in several files."""
_NAMES = 10  # entries in the note of what is ignored


def read_weights(path: str | Path) -> State:
    """Read the weights of a file or a folder, under the names of official DINOv2.

    For a file, a note says which of its tables is used, and what is ignored: the other entries of a file that a
    training wrote, and tensors of heads and decoders.

    Raises:
        UsageError, DinomedError: as `read_tensor_table`.
    """
    tensors, used, ignored = _read_table(Path(path))
    state, rest = _split_backbone(tensors)
    if rest:
        ignored = [*ignored, f"{len(rest)} tensors outside the backbone ({_few(rest)})"]
    if Path(path).is_file() and ignored:
        place = f"the weights are those of {' in '.join(map(repr, reversed(used)))}; " if used else ""
        more = f", and {len(ignored) - _NAMES:,} more entries" if len(ignored) > _NAMES else ""
        logger.info(f"{path}: {place}ignored: {', '.join(ignored[:_NAMES])}{more}")
    return _convert_names(state)


def read_tensor_table(path: str | Path) -> State:
    """Read the tensors of a file under their own names; of a folder, those of one of `FOLDER_FILES` or of the shards
    that `INDEX_FILE` lists.

    Raises:
        UsageError: the file does not exist.
        DinomedError: a file is missing or cut off, is no file of weights, or is a pickle that would run code.
    """
    return _read_table(Path(path))[0]


def _read_table(path: Path) -> tuple[State, list[str], list[str]]:
    """Return the tensors, the names of the dictionaries around them, and the names of the entries beside them."""
    if path.is_dir():
        if not (path / FOLDER_FILES[0]).is_file() and (path / INDEX_FILE).is_file():
            return _read_shards(path), [], []
        path = next((path / name for name in FOLDER_FILES if (path / name).is_file()), path / FOLDER_FILES[0])
    if not path.is_file():
        raise UsageError(f"weights {path} do not exist")
    return find_tensor_table(read_weight_file(path), path)


def shard_names(index: Path) -> list[str]:
    """Return the names of the files that an `INDEX_FILE` lists.

    Raises:
        DinomedError: the index is damaged, or names a file outside its folder.
    """
    content = read_json(index)
    table = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise DinomedError(f"{index}: no table of shards (weight_map); copy the folder again")
    names = sorted(set(table.values()))
    outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if outside:
        raise DinomedError(f"{index}: refused: {outside[0]!r} is not the name of a safetensors file in its folder")
    return names


def _read_shards(folder: Path) -> State:
    names = shard_names(folder / INDEX_FILE)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DinomedError(
            f"{folder}: {len(missing)} of {len(names)} shards are missing ({_few(missing)}); copy the folder again"
        )
    state: State = {}
    for name in names:
        state |= read_weight_file(folder / name)
    listed = read_json(folder / INDEX_FILE)["weight_map"]
    lost = [key for key in listed if key not in state]
    if lost:
        raise DinomedError(
            f"{folder}: its shards lack {len(lost)} listed tensors ({_few(lost)}); copy the folder again"
        )
    return state


def convert(state: Mapping[str, Tensor]) -> State:
    """Convert the names of any known library to those of official DINOv2, and values to float32. Unknown names stay, so
    that `differences` can list them."""
    return _convert_names(_split_backbone(state)[0])


def _convert_names(state: State) -> State:
    if any(key.startswith("embeddings.") for key in state):
        state = _from_transformers(state)
    state = _from_timm(_from_dinov3(_join(state)))
    state = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): value for key, value in state.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


_PREFIXES = ("module.", "_orig_mod.", "teacher.backbone.", "backbone.", "dinov2.", "dinov2_with_registers.", "vit.")
# heads, decoders, and what is computed from the config
_HEADS = (
    "head.", "head_dist.", "classifier.", "dino_head.", "ibot_head.", "pooler.", "decoder_", "decoder.", "masked_embed",
    "rope_embed.",
)  # fmt: skip


def _inside(names: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Return the entries whose key begins with a prefix, without it."""
    return {key.removeprefix(prefix): name for key, name in names.items() if key.startswith(prefix)}


def _split_backbone(state: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """Return the tensors of the backbone, without prefixes of wrappers, and the names of the others (heads, decoders).

    A checkpoint of CAE, such as PanDerm's, holds its backbone under ``encoder.``, beside a teacher and a decoder. A
    checkpoint of a training of DINOv2 holds student and teacher in one table.
    """
    state = {str(key): value for key, value in state.items()}
    names = {key: key for key in state}  # a name without prefixes -> the name in the file
    for prefix in _PREFIXES:
        names = _inside(names, prefix) or names
    if "encoder.patch_embed.proj.weight" in names:
        names = _inside(names, "encoder.")
    heads = _HEADS if "norm.weight" not in names else (*_HEADS, "fc_norm.")
    names = {key: name for key, name in names.items() if not key.startswith(heads)}
    used = set(names.values())
    return {key: state[name] for key, name in names.items()}, [name for name in state if name not in used]


# (pattern of a name of transformers, on disk or in memory; our name)
_TRANSFORMERS = [
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^(encoder\.|model\.)?layers?\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
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
    (".mlp.w12.", (".mlp.w1.", ".mlp.w2.")),
]


def _join(state: State) -> State:
    out = dict(state)
    for key in [key for key in out if key.endswith((".attn.query.bias", ".attn.value.bias"))]:  # DINOv3 has no key bias
        missing = re.sub(r"(query|value)\.bias$", "key.bias", key)
        out.setdefault(missing, torch.zeros_like(out[key]))
    for ours, parts in _JOINED:
        for key in [key for key in out if parts[0] in key]:
            theirs = [key.replace(parts[0], part) for part in parts]
            if all(name in out for name in theirs):
                out[key.replace(parts[0], ours)] = torch.cat([out.pop(name) for name in theirs])
    return out


def _from_dinov3(state: State) -> State:
    """Convert names of DINOv3, official and of transformers: `storage_tokens`, a mask on the bias of the attention, and
    an MLP under the names of a gated one."""
    out = {"register_tokens" if key == "storage_tokens" else key: value for key, value in state.items()}
    for key in [key for key in out if key.endswith(".attn.qkv.bias_mask")]:
        mask, bias = out.pop(key), key.removesuffix("_mask")
        if bias in out:
            out[bias] = torch.where(mask == 0, 0.0, out[bias].float())
    # timm, BEiT and CAE, without a bias of the keys
    for key in [key for key in out if key.endswith(".attn.q_bias") and key.replace("q_bias", "v_bias") in out]:
        query, value = out.pop(key), out.pop(key.replace(".q_bias", ".v_bias"))
        out[key.replace(".q_bias", ".qkv.bias")] = torch.cat([query, torch.zeros_like(query), value])
    for key in [key for key in out if ".mlp.up_proj." in key]:  # `_join` has taken those of gated layers
        down = key.replace(".mlp.up_proj.", ".mlp.w3.")
        out[key.replace(".mlp.up_proj.", ".mlp.fc1.")] = out.pop(key)
        if down in out:
            out[key.replace(".mlp.up_proj.", ".mlp.fc2.")] = out.pop(down)
    return out


def _from_timm(state: State) -> State:
    """Convert names of timm.

    These are `reg_token`, `gamma_1` for LayerScale, `fc_norm` for the final norm of models that pool patches, a
    position embedding without a position of the class token (timm adds that to the token itself) or with positions of
    the registers, and a packed SwiGLU under the names of an MLP, whose second layer is half as wide.
    """
    names = {"reg_token": "register_tokens"}
    if "norm.weight" not in state:
        names |= {"fc_norm.weight": "norm.weight", "fc_norm.bias": "norm.bias"}
    out = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", names.get(key, key)): value for key, value in state.items()}
    mask, registers, position = (out.get(name) for name in ("mask_token", "register_tokens", "pos_embed"))
    if mask is not None and mask.ndim == 3:
        width = out["cls_token"].shape[-1] if "cls_token" in out else None
        out["mask_token"] = mask.reshape(-1, mask.shape[-1])
        if mask.shape[-1] != width:  # that of a decoder
            del out["mask_token"]
    if position is not None and position.ndim == 3:
        count = 0 if registers is None or registers.ndim != 3 else registers.shape[1]
        if grid_side(position.shape[1]) is not None:
            out["pos_embed"] = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
        elif registers is not None and count and grid_side(position.shape[1] - 1 - count) is not None:
            out["register_tokens"] = registers + position[:, 1 : 1 + count]
            out["pos_embed"] = torch.cat([position[:, :1], position[:, 1 + count :]], dim=1)
    for key in [key for key in out if key.endswith(".mlp.fc2.weight")]:
        block = key.removesuffix("fc2.weight")
        first = out.get(f"{block}fc1.weight")
        swiglu = f"{block}w12.weight" in out  # joined from fc1_g and fc1_x
        if swiglu or (first is not None and len(first) == 2 * out[key].shape[1]):
            for name in [name for name in out if name.startswith((f"{block}fc1.", f"{block}fc2."))]:
                out[name.replace(".fc1.", ".w12.").replace(".fc2.", ".w3.")] = out.pop(name)
    return out


def build_with_weights(config: ViTConfig, state: Mapping[str, Tensor], source: str) -> VisionTransformer:
    """Build a ViT with the weights `state`, under the names of official DINOv2.

    If the position embedding is for another image size than that of `config`, the config follows it. A missing mask
    token (timm has none; frozen features do not need it) is set to zero.

    Raises:
        UsageError: the weights have another architecture; the differences are listed.
        DinomedError: the weights are integers.
    """
    position = state.get("pos_embed")
    side = grid_side(position.shape[1] - 1) if position is not None and position.ndim == 3 else None
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
    name = first_kernel(state)
    kernel = state[name]
    old_channels = kernel.shape[1]
    if old_channels == channels:
        return dict(state)
    new = (kernel.mean(dim=1, keepdim=True) * (old_channels / channels)).repeat(1, channels, 1, 1)
    return {**state, name: new}


def first_kernel(names: Container[str]) -> str:
    """Return the name of the kernel that reads the channels of an image."""
    return STEM_KERNEL if STEM_KERNEL in names else "patch_embed.proj.weight"
