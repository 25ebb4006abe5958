"""Saving and loading of backbones: `save_backbone` and `load_backbone`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file

from dinomed.backbones.frozen import FrozenBackbone, check_image_size
from dinomed.backbones.hub import cached_weights
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.variants import VARIANTS
from dinomed.backbones.vit import VisionTransformer, ViTConfig
from dinomed.backbones.weights import build_with_weights, convert, read_weights
from dinomed.config import Config
from dinomed.device import resolve_device
from dinomed.errors import DinomedError, UsageError, did_you_mean, first_line
from dinomed.io.files import read_json, replacing, to_json, write_text
from dinomed.io.tensor_file import check_tensors, has_entry, hash_tensors, parse_record, read_header, read_tensors
from dinomed.log import logger

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
HEADER = "config"
FORMAT: Final = "dinomed.backbone/2"
# names in a run folder of pretraining that `load_backbone` reads (the others: dinomed.pretrain.run_folder)
RUN_BACKBONE, RUN_CHECKPOINTS, RUN_RECORD = "backbone", "checkpoints", "run.json"


class BackboneRecord(Config):
    """The record in the header of the weights.

    Attributes:
        architecture: architecture of the ViT.
        preprocessing: how images are prepared.
        metadata: further values of the run that wrote it, such as `step`.
        weights_sha256: hash of the tensors (see `dinomed.io.tensor_file.hash_tensors`); it is verified at each load.
    """

    format: Literal["dinomed.backbone/2"] = FORMAT
    architecture: ViTConfig
    preprocessing: Preprocessing
    metadata: dict[str, Any] = Field(default_factory=dict)
    weights_sha256: str


def save_backbone(
    folder: str | Path, vit: VisionTransformer, preprocessing: Preprocessing, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write `model.safetensors` and `config.json`.

    The config is also in the header of `model.safetensors`, with the hash of the weights, and is read from there. So
    one rename replaces an older backbone completely, and an interrupted save leaves either the old or the new one.
    `config.json` is for people and other tools.
    """
    folder = Path(folder)
    state = {key: value.detach().cpu().contiguous().clone() for key, value in vit.state_dict().items()}
    record = BackboneRecord(
        architecture=vit.config,
        preprocessing=preprocessing,
        metadata=dict(metadata or {}),
        weights_sha256=hash_tensors(state),
    )
    text = to_json(record.model_dump(mode="json"), indent=2)
    with replacing(folder / WEIGHTS_FILE) as temporary:
        try:
            save_file(state, temporary, metadata={HEADER: text})
        except SafetensorError as error:  # the error of safetensors for a full disk
            raise DinomedError(f"cannot write {folder / WEIGHTS_FILE}: {error}") from None
    write_text(folder / CONFIG_FILE, text + "\n")


def load_backbone(
    name_or_path: str | Path,
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    image_size: int | None = None,
) -> FrozenBackbone:
    """Load a frozen backbone.

    Args:
        name_or_path: name of a variant (`dinov2_vits14`: its released weights are downloaded once and kept in a cache
            folder), or a path: a run folder, a backbone folder, or a folder saved by transformers.
        weights: file with the weights of the named variant: official `.pth`, timm, transformers, or safetensors.
        device: cpu, cuda, cuda:N, mps or auto.
        image_size: side of the square that images are resized to, px, instead of the backbone's own.

    Raises:
        UsageError: there is no such name or path, the weights have another architecture, or the image size is not a
            multiple of the patch size.
        DinomedError: a file cannot be downloaded, is damaged, or would run code when it is read.
    """
    if str(name_or_path) in VARIANTS:
        backbone = _load_variant(str(name_or_path), weights, image_size)
    else:
        if weights is not None:
            raise UsageError(f"weights {weights} need the name of their architecture, not {str(name_or_path)!r}")
        backbone = _load_path(Path(name_or_path), image_size)
    where = device if isinstance(device, torch.device) else resolve_device(device)
    logger.debug(f"backbone {backbone.name} from {backbone.source} on {where}, fingerprint {backbone.fingerprint[:16]}")
    return backbone.to(where)


def _sized(preprocessing: Preprocessing, image_size: int | None) -> Preprocessing:
    return preprocessing if image_size is None else preprocessing.model_copy(update={"image_size": image_size})


def _load_variant(name: str, weights: str | Path | None, image_size: int | None) -> FrozenBackbone:
    variant = VARIANTS[name]
    if image_size is not None:
        check_image_size(image_size, variant.patch_size)  # before a long download
    if weights is None and variant.release is None:
        raise UsageError(f"{name} has no released weights; pretrain it, or give `weights=FILE`")
    path = Path(weights) if weights is not None else cached_weights(name)
    vit = build_with_weights(variant.config(), read_weights(path), str(path))
    return FrozenBackbone(vit, _sized(Preprocessing(), image_size), name, None if weights is None else str(path))


def _load_path(path: Path, image_size: int | None) -> FrozenBackbone:
    if not path.exists():
        known = did_you_mean(str(path), VARIANTS) if path.name == str(path) else ""
        raise UsageError(f"backbone {str(path)!r} is no known name and no existing path{known}")
    if path.is_file():
        raise UsageError(f"{path}: a file needs its architecture too: the name of a backbone, and `weights={path}`")
    folder = path / RUN_BACKBONE if (path / RUN_BACKBONE).is_dir() else path
    if (folder / "adapter.json").exists():
        raise UsageError(f"{path} is an adapter; give the backbone that it was trained on")
    if not (folder / WEIGHTS_FILE).is_file() and not (folder / "pytorch_model.bin").is_file():
        if (path / RUN_CHECKPOINTS).exists() or (path / RUN_RECORD).exists():
            raise UsageError(f"{path} is a run without a backbone yet; its first checkpoint writes one")
        raise UsageError(f"{path} holds no backbone (a run of dinomed pretrain, or {CONFIG_FILE} and {WEIGHTS_FILE})")
    name = path.resolve().parent.name if path.name == RUN_BACKBONE else path.resolve().name
    file = folder / WEIGHTS_FILE
    if not file.is_file() or not has_entry(file, HEADER):
        return _load_transformers(folder, name, image_size)
    remedy = "copy it again, or load the last checkpoint of its run"
    record = parse_record(file, read_header(file, HEADER, remedy), BackboneRecord, FORMAT, remedy)
    tensors = read_tensors(file)
    check_tensors(file, tensors, record.weights_sha256, remedy)
    vit = build_with_weights(record.architecture, convert(tensors), str(file))
    return FrozenBackbone(vit, _sized(record.preprocessing, image_size), name, str(path), record.metadata)


def _load_transformers(folder: Path, name: str, image_size: int | None) -> FrozenBackbone:
    """Load a folder that ``save_pretrained`` of transformers wrote.

    The position embedding is resized as in the official code. transformers leaves out the offset of the models without
    registers, so at other image sizes than that of the weights its features differ slightly from the official ones.
    """
    config_file = folder / CONFIG_FILE
    theirs = read_json(config_file)
    kind = theirs.get("model_type") if isinstance(theirs, dict) else None
    if kind not in {"dinov2", "dinov2_with_registers"}:
        raise UsageError(f"{folder}: {CONFIG_FILE} is of a {kind or 'unknown'} model, not of a DINOv2 one")
    registers = kind == "dinov2_with_registers"
    try:
        config = ViTConfig(
            embed_dim=theirs["hidden_size"],
            depth=theirs["num_hidden_layers"],
            num_heads=theirs["num_attention_heads"],
            patch_size=theirs["patch_size"],
            image_size=theirs["image_size"],
            in_channels=theirs.get("num_channels", 3),
            num_registers=theirs.get("num_register_tokens", 4) if registers else 0,
            feed_forward="swiglu" if theirs.get("use_swiglu_ffn") else "mlp",
            mlp_ratio=theirs.get("mlp_ratio", 4),
            position_antialias=registers,
            position_offset=0.0 if registers else 0.1,
        )
    except (KeyError, ValidationError) as error:
        raise DinomedError(f"{config_file}: not a config of DINOv2 ({first_line(error)})") from None
    vit = build_with_weights(config, read_weights(folder), str(folder))
    preprocessing = _transformers_preprocessing(folder, config)
    return FrozenBackbone(vit, _sized(preprocessing, image_size), name, str(folder))


def _transformers_preprocessing(folder: Path, config: ViTConfig) -> Preprocessing:
    """Return the mean, std and crop size of `preprocessor_config.json`, if the file exists. The image is resized, not
    cropped."""
    path = folder / "preprocessor_config.json"
    theirs = read_json(path) if path.is_file() else {}
    known: dict[str, Any] = {"channels": config.in_channels}
    known |= {ours: theirs[key] for ours, key in (("mean", "image_mean"), ("std", "image_std")) if key in theirs}
    size = (theirs.get("crop_size") or {}).get("height")
    if isinstance(size, int) and size % config.patch_size == 0:
        known["image_size"] = size
    try:
        return Preprocessing(**known)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise DinomedError(f"{path}: cannot be used ({problem}); its mean and std are needed") from None
