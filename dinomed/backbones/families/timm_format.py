"""Folders in the format of timm (`config.json` with ``architecture``): dinomed's own ViT where the model is one of the
DINOv2 family, else timm's module."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dinomed.backbones.families.registry import LoadedFamily
from dinomed.backbones.families.statistics import timm_preprocessing, timm_reading
from dinomed.backbones.families.tensors import build_inferred, infer_config
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import TokenModel, Tokens, resolve_indices
from dinomed.backbones.weights import convert, differences, read_tensor_table
from dinomed.errors import DinomedError, UsageError, did_you_mean, first_line
from dinomed.io.files import write_json
from dinomed.io.tensor_file import write_tensors

_NOT_ARGUMENTS = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
"""Arguments of ``timm.create_model`` that would read other files; a config must not set them."""


class TimmModel(TokenModel):
    """A ViT of timm whose parts dinomed's own ViT does not have (EVA-02, SigLIP, CLIP, BEiT and others).

    If the model has no class token, `cls` is the output of its attention pooling, or else the mean of its patch tokens.
    Further tokens before the patches are registers.
    """

    def __init__(self, module: nn.Module, name: str, arguments: Mapping[str, Any], fixed_size: int | None) -> None:
        super().__init__()
        self.module: Any = cast(Any, module)
        self.family, self.fixed_size = f"{name} (timm)", fixed_size
        self.embed_dim, self.depth = self.module.embed_dim, len(self.module.blocks)
        patch = self.module.patch_embed.patch_size
        if patch[0] != patch[1]:
            raise UsageError(f"{name}: patches of {patch[0]}x{patch[1]} px; dinomed needs square ones")
        self.patch_size, self.in_channels = patch[0], self.module.patch_embed.proj.in_channels
        self._described = {"library": "timm", "architecture": name, "arguments": dict(arguments)}
        self._has_class = getattr(self.module, "cls_token", None) is not None

    def architecture(self) -> dict[str, Any]:
        return self._described

    def write_folder(self, folder: Path, preprocessing: Preprocessing) -> None:
        state = {name: value.detach().cpu().contiguous().clone() for name, value in self.module.state_dict().items()}
        write_tensors(folder / "model.safetensors", state, {"format": "pt"})
        values = {
            "architecture": self._described["architecture"],
            "num_classes": 0,
            "num_features": self.embed_dim,
            "model_args": self._described["arguments"],
            "pretrained_cfg": timm_reading(preprocessing),
        }
        write_json(folder / "config.json", values)

    def forward_blocks(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        indices = resolve_indices(blocks, self.depth)
        if self.fixed_size is not None and images.shape[-2:] != (self.fixed_size, self.fixed_size):
            raise UsageError(
                f"a {self.family} model takes images of {self.fixed_size}x{self.fixed_size} px only, not of "
                f"{images.shape[-2]}x{images.shape[-1]} px"
            )
        prefix = self.module.num_prefix_tokens
        outputs = self.module.forward_intermediates(
            images, indices=sorted(set(indices)), return_prefix_tokens=prefix > 0, output_fmt="NLC",
            intermediates_only=True, stop_early=True,
        )  # fmt: skip
        by_block = dict(zip(sorted(set(indices)), outputs, strict=True))
        return [self._tokens(by_block[index], prefix) for index in indices]

    def _tokens(self, output: Any, prefix: int) -> Tokens:
        patches, first = output if prefix else (output, output[:, :0])
        norm = self.module.norm
        if isinstance(norm, nn.Identity) and hasattr(self.module, "fc_norm"):  # a model that pools patches
            norm = self.module.fc_norm
        x = norm(torch.cat([first, patches], dim=1))
        if self._has_class:
            return Tokens(cls=x[:, 0], registers=x[:, 1:prefix], patches=x[:, prefix:])
        pool = getattr(self.module, "attn_pool", None)
        cls = x[:, prefix:].mean(dim=1) if pool is None else pool(x)
        return Tokens(cls=cls, registers=x[:, :prefix], patches=x[:, prefix:])


def load_timm_folder(folder: Path, config: dict[str, Any]) -> LoadedFamily:
    """Load a folder that timm wrote (`save_for_hf`), that its hub has, or of ``dinomed export --format timm``.

    Raises:
        UsageError: timm does not know the architecture, it is not a ViT, or its weights are of another architecture.
        DinomedError: a file is damaged.
    """
    name = config["architecture"]
    arguments = config.get("model_args") or {}
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise DinomedError(f"{folder / 'config.json'}: not a config of timm (architecture, model_args)")
    arguments = {key: value for key, value in arguments.items() if key not in _NOT_ARGUMENTS}
    with torch.device("meta"):
        skeleton = _create(folder, name, arguments)
    state = read_tensor_table(folder)
    model = _native(folder, skeleton, state)
    if model is None:
        model = _foreign(folder, name, arguments, state)
    preprocessing, known = timm_preprocessing(folder, config, model)
    if model.fixed_size is not None:
        preprocessing = preprocessing.model_copy(update={"image_size": model.fixed_size})
    return LoadedFamily(model, preprocessing, known)


def _create(folder: Path, name: str, arguments: Mapping[str, Any], **more: Any) -> nn.Module:
    import timm

    name = name.partition(".")[0]
    if not timm.is_model(name):
        known = did_you_mean(name, timm.list_models())
        raise UsageError(f"{folder}: timm {timm.__version__} has no architecture {name!r}{known}")
    try:
        return timm.create_model(name, pretrained=False, **{**arguments, "num_classes": 0, **more})
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        raise UsageError(f"{folder}: timm cannot build {name}: {first_line(error, 200)}") from None


def _native(folder: Path, skeleton: nn.Module, state: Mapping[str, Tensor]) -> TokenModel | None:
    """Return dinomed's own ViT with the weights; None if the architecture has parts that it does not have."""
    kind, theirs = type(skeleton).__name__, cast(Any, skeleton)
    if kind not in ("VisionTransformer", "Eva") or theirs.cls_token is None:
        return None
    if kind == "Eva" and type(theirs.rope).__name__ != "RotaryEmbeddingDinoV3":
        return None
    block = theirs.blocks[0]
    has_other_parts = (
        not isinstance(theirs.norm_pre, nn.Identity)
        or theirs.attn_pool is not None
        or not _absent(block.attn, "q_norm", "k_norm", "norm")
        or not _absent(block.mlp, "norm")
        or "quick" in repr(block.mlp.act).lower()
        or getattr(block.mlp.act, "approximate", "none") != "none"
        or getattr(skeleton, "dist_token", None) is not None
    )
    if has_other_parts:
        return None
    converted = convert(state)
    known = {"num_heads": block.attn.num_heads, "norm_eps": block.norm1.eps}
    if theirs.embed_dim != converted.get("cls_token", torch.empty(0)).shape[-1]:
        known.pop("num_heads")  # the arguments of the model were never written to its config
    if kind == "Eva":
        if theirs.rope.temperature is None or getattr(theirs.rope, "normalize_coords", "separate") != "separate":
            return None
        known |= {"position": "rope", "rope_theta": float(theirs.rope.temperature)}
    config = infer_config(converted, str(folder), **known)
    return build_inferred(config, converted, str(folder))


def _absent(module: nn.Module, *names: str) -> bool:
    return all(isinstance(getattr(module, name, nn.Identity()), nn.Identity) for name in names)


def _foreign(folder: Path, name: str, arguments: dict[str, Any], state: Mapping[str, Tensor]) -> TokenModel:
    try:
        module = _create(folder, name, arguments, dynamic_img_size=True)
        fixed = None
    except UsageError:
        module = _create(folder, name, arguments)
        fixed = -1
    theirs = cast(Any, module)
    if (
        not hasattr(theirs, "forward_intermediates")
        or not hasattr(theirs, "blocks")
        or not hasattr(theirs, "patch_embed")
    ):
        raise UsageError(
            f"{folder}: {name} is no ViT (a {type(module).__name__} of timm); dinomed uses backbones of equal blocks "
            "on patches; choose a ViT"
        )
    if fixed is not None:
        fixed = theirs.patch_embed.img_size[0]
    prepare = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    weights = dict(state)
    if prepare is not None:
        try:
            weights = prepare(weights, module)
        except (KeyError, RuntimeError, ValueError, AssertionError, AttributeError, TypeError, IndexError) as error:
            raise UsageError(f"{folder}: weights of another architecture than {name} ({first_line(error)})") from None
    expected = module.state_dict()
    weights = {key: value.float() for key, value in weights.items() if key in expected or not key.startswith("head")}
    problems = differences({key: value.shape for key, value in expected.items()}, weights)
    if problems:
        raise UsageError(f"{folder}: weights of another architecture than {name}: {'; '.join(problems)}")
    module.load_state_dict(weights)
    return TimmModel(module, name, arguments, fixed)
