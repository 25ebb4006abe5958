"""Folders in the format of transformers (`config.json` with ``model_type``).

DINOv2, DINOv3, ViT, MAE and MSN become dinomed's own ViT; CLIP, SigLIP and BEiT are computed by transformers.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

from safetensors import SafetensorError
from torch import Tensor, nn

from dinomed.backbones.families.registry import FAMILIES, LoadedFamily
from dinomed.backbones.families.statistics import (
    PROCESSOR_FILE,
    transformers_preprocessing,
    transformers_processor,
)
from dinomed.backbones.families.tensors import build_inferred, infer_config
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import TokenModel, Tokens, resolve_indices
from dinomed.backbones.weights import read_weights
from dinomed.errors import DinomedError, UsageError, first_line, system_reason
from dinomed.io.files import write_json


def _load_own(folder: Path, config: dict[str, Any], **known: Any) -> LoadedFamily:
    """Load a model that dinomed's own ViT can represent. Shapes come from the tensors, the rest from the config."""
    activation = config.get("hidden_act", "gelu")
    gated = config.get("use_swiglu_ffn") or config.get("use_gated_mlp")
    if activation != ("silu" if config.get("use_gated_mlp") else "gelu") and not (gated and activation == "gelu"):
        raise UsageError(f"{folder}: hidden_act {activation!r}; dinomed's ViT has gelu (MLP) and silu (SwiGLU)")
    state = read_weights(folder)
    known |= {
        key: config[theirs]
        for key, theirs in (("num_heads", "num_attention_heads"), ("norm_eps", "layer_norm_eps"))
        if theirs in config
    }
    architecture = infer_config(state, str(folder), **known)
    if config["model_type"] in _PLAIN and (architecture.num_registers or architecture.layerscale is not None):
        raise UsageError(
            f"{folder}: weights of another family: with registers or LayerScale, and its config.json is of a "
            f"{config['model_type']} model"
        )
    stated = {"depth": "num_hidden_layers", "embed_dim": "hidden_size", "patch_size": "patch_size"}
    for field, theirs in stated.items():
        if config.get(theirs, getattr(architecture, field)) != getattr(architecture, field):
            raise UsageError(
                f"{folder}: weights of another architecture: {field} {getattr(architecture, field)}, its config.json "
                f"says {config[theirs]}"
            )
    vit = build_inferred(architecture, state, str(folder))
    size = config.get("image_size")
    default = size if isinstance(size, int) and config["model_type"] not in _ANY_SIZE else None
    preprocessing, known_statistics = transformers_preprocessing(folder, vit, default)
    return LoadedFamily(vit, preprocessing, known_statistics)


_PLAIN = ("vit", "vit_mae", "vit_msn")
_ANY_SIZE = ("dinov2", "dinov2_with_registers")  # released at 518 px, used at 224 px


@FAMILIES.register("dinov2")
def load_dinov2(folder: Path, config: dict[str, Any]) -> LoadedFamily:
    """Load DINOv2 without registers.

    The position embedding is resized as in the official code. transformers leaves out the offset of this rule, so its
    features differ slightly from the official ones at image sizes other than that of the weights.
    """
    return _load_own(folder, _without_default_eps(config), position_antialias=False, position_offset=0.1)


@FAMILIES.register("dinov2_with_registers")
def load_dinov2_with_registers(folder: Path, config: dict[str, Any]) -> LoadedFamily:
    """Load DINOv2 with registers."""
    return _load_own(folder, _without_default_eps(config), position_antialias=True, position_offset=0.0)


def _without_default_eps(config: dict[str, Any]) -> dict[str, Any]:
    return {"layer_norm_eps": 1e-6, **config}


@FAMILIES.register("vit_msn")
@FAMILIES.register("vit_mae")
@FAMILIES.register("vit")
def load_vit(folder: Path, config: dict[str, Any]) -> LoadedFamily:
    """Load a plain ViT, such as DINO v1, MAE or Phikon. transformers resizes its positions without antialiasing."""
    config = {"layer_norm_eps": 1e-6 if config["model_type"] == "vit_msn" else 1e-12, **config}
    return _load_own(folder, config, position_antialias=False, position_offset=0.0)


@FAMILIES.register("dinov3_vit")
def load_dinov3(folder: Path, config: dict[str, Any]) -> LoadedFamily:
    """Load DINOv3: rotary positions and registers."""
    theta = float(config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta") or 100.0)
    return _load_own(folder, {"layer_norm_eps": 1e-5, **config}, position="rope", rope_theta=theta)


class _Kind(NamedTuple):
    """A family that the module of transformers computes.

    Attributes:
        model_class: name of the class.
        section: part of the config with the vision model, for models of images and text.
        norm: name of the final norm.
        has_class: whether the first token is a class token.
        processor: name of the class of its image processor.
    """

    model_class: str
    section: str | None
    norm: str
    has_class: bool
    processor: str


_KINDS = {
    "clip": _Kind("CLIPVisionModel", "vision_config", "post_layernorm", True, "CLIPImageProcessor"),
    "clip_vision_model": _Kind("CLIPVisionModel", None, "post_layernorm", True, "CLIPImageProcessor"),
    "siglip": _Kind("SiglipVisionModel", "vision_config", "post_layernorm", False, "SiglipImageProcessor"),
    "siglip_vision_model": _Kind("SiglipVisionModel", None, "post_layernorm", False, "SiglipImageProcessor"),
    "beit": _Kind("BeitModel", None, "layernorm", True, "BeitImageProcessor"),
}


class TransformersModel(TokenModel):
    """A vision model of transformers. If it has no class token, `cls` is the output of its pooling head."""

    def __init__(
        self, module: nn.Module, kind: _Kind, name: str, section: Mapping[str, Any], config: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.module: Any = cast(Any, module)
        self.family, self._kind, self._config = f"{name} (transformers)", kind, dict(config)
        theirs = self.module.config
        self.embed_dim, self.depth = theirs.hidden_size, theirs.num_hidden_layers
        self.patch_size, self.in_channels = theirs.patch_size, theirs.num_channels
        unused = {"transformers_version", "torch_dtype", "dtype", "_name_or_path", "architectures"}
        self._described = {
            "library": "transformers",
            "model_type": name,
            "config": {key: value for key, value in section.items() if key not in unused},
        }

    def architecture(self) -> dict[str, Any]:
        return self._described

    def write_folder(self, folder: Path, preprocessing: Preprocessing) -> None:
        import transformers

        with _quiet(transformers):
            try:
                self.module.save_pretrained(folder, max_shard_size="5GB")
            except (OSError, SafetensorError) as error:
                raise DinomedError(f"cannot write {folder}: {system_reason(error)}") from None
        # the config as it was read: that of the vision model alone would change the fingerprint
        write_json(folder / "config.json", _without_paths(self._config))
        write_json(folder / PROCESSOR_FILE, transformers_processor(preprocessing, self._kind.processor))

    def forward_blocks(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        indices = resolve_indices(blocks, self.depth)
        core = getattr(self.module, "vision_model", self.module)  # before transformers 5
        norm, pool = getattr(core, self._kind.norm), getattr(core, "head", None)
        if isinstance(norm, nn.Identity):  # BEiT that pools patches
            norm = self.module.pooler.layernorm
        hidden = self.module(images, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
        outputs = [norm(hidden[index + 1]) for index in indices]
        if self._kind.has_class:
            return [Tokens(cls=x[:, 0], registers=x[:, 1:1], patches=x[:, 1:]) for x in outputs]
        return [Tokens(cls=x.mean(dim=1) if pool is None else pool(x), registers=x[:, :0], patches=x) for x in outputs]


def _without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config, and its sections, without the place that the model was loaded from."""
    kept = {key: value for key, value in config.items() if key != "_name_or_path"}
    return {key: _without_paths(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _load_foreign(folder: Path, config: dict[str, Any]) -> LoadedFamily:
    """Load a model that the module of transformers computes.

    Raises:
        UsageError: transformers is not installed.
        DinomedError: the weights are damaged or incomplete.
    """
    name = config["model_type"]
    if find_spec("transformers") is None:
        raise UsageError(
            f"{folder}: a {name} model needs the package transformers: pip install 'dinomed[transformers]'"
        )
    import transformers

    kind = _KINDS[name]
    section = config if kind.section is None else config.get(kind.section) or {}
    with _quiet(transformers):
        try:
            module, report = getattr(transformers, kind.model_class).from_pretrained(
                folder, local_files_only=True, weights_only=True, output_loading_info=True, dtype="float32",
                attn_implementation="sdpa",
            )  # fmt: skip
        except Exception as error:  # its readers raise errors of many kinds on damaged files
            raise DinomedError(f"{folder}: transformers cannot read it: {first_line(error, 200)}") from None
    missing = sorted(report["missing_keys"])
    if missing or report["mismatched_keys"]:
        raise DinomedError(
            f"{folder}: {len(missing)} weights are missing and {len(report['mismatched_keys'])} have another shape "
            f"({', '.join(missing[:2])}); copy the folder again"
        )
    model = TransformersModel(module.eval(), kind, name, section, config)
    size = module.config.image_size
    preprocessing, known = transformers_preprocessing(folder, model, size if isinstance(size, int) else None)
    return LoadedFamily(model, preprocessing, known)


for _name in _KINDS:
    FAMILIES.register(_name)(_load_foreign)


class _quiet:
    """Turn the progress bars and notes of transformers off for a while."""

    def __init__(self, transformers: Any) -> None:
        self.log = transformers.utils.logging

    def __enter__(self) -> None:
        self.level, self.bar = self.log.get_verbosity(), self.log.is_progress_bar_enabled()
        self.log.set_verbosity_error()
        self.log.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        self.log.set_verbosity(self.level)
        if self.bar:
            self.log.enable_progress_bar()
