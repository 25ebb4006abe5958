"""Saving and loading of backbones: `save_backbone` and `load_backbone`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file

from dinomed.backbones.config import ViTConfig
from dinomed.backbones.families.folders import load_family_folder
from dinomed.backbones.families.registry import LoadedFamily
from dinomed.backbones.families.tensors import load_tensor_file
from dinomed.backbones.frozen import FrozenBackbone, check_image_size
from dinomed.backbones.hub import cached_weights
from dinomed.backbones.huggingface import fetch_folder, is_hub_name
from dinomed.backbones.preprocessing import Aspect, Preprocessing
from dinomed.backbones.variants import VARIANTS
from dinomed.backbones.vit import VisionTransformer
from dinomed.backbones.weights import FOLDER_FILES, INDEX_FILE, build_with_weights, convert, read_weights
from dinomed.config import Config
from dinomed.device import resolve_device
from dinomed.errors import DinomedError, MissingInputError, UsageError, did_you_mean, system_reason
from dinomed.io.files import replacing, to_json, write_text
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
            raise DinomedError(f"cannot write {folder / WEIGHTS_FILE}: {system_reason(error)}") from None
    write_text(folder / CONFIG_FILE, text + "\n")


def load_backbone(
    name_or_path: str | Path,
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    aspect: Aspect | None = None,
) -> FrozenBackbone:
    """Load a frozen backbone.

    Args:
        name_or_path: one of

            - the name of a variant (`dinov2_vits14`: its released weights are downloaded once and kept in a cache);
            - `timm/NAME` or `hf-hub:ORG/NAME`: a model of the Hugging Face hub, downloaded once;
            - a run folder or a backbone folder;
            - a folder in the format of timm or of transformers, or of an installed plug-in;
            - a file of weights (.safetensors, .pth) of a ViT, whose architecture is inferred from the tensors.
        weights: file with the weights of the named variant: official `.pth`, timm, transformers, or safetensors.
        device: cpu, cuda, cuda:N, mps or auto.
        image_size: side of the square that images are resized to (with `aspect` keep the shorter side of the
            rectangle), px, instead of the backbone's own.
        mean: mean of each channel in 0 to 1, for weights whose files name none.
        std: standard deviation of each channel.
        aspect: square (images are resized to the square), pad (they keep their proportions and are padded) or keep
            (they are resized to rectangles), instead of the backbone's own.

    Raises:
        UsageError: there is no such name or path, the weights have another architecture, the image size is not a
            multiple of the patch size, `mean` and `std` do not fit, or the backbone takes no rectangles.
        DinomedError: a file cannot be downloaded, is damaged, or would run code when it is read.
    """
    if (mean is None) != (std is None):
        raise UsageError("give both `mean` and `std`, or neither")
    statistics = None if mean is None or std is None else (tuple(mean), tuple(std))
    if aspect not in (None, *get_args(Aspect)):
        raise UsageError(f"`aspect={aspect}`: give one of {', '.join(get_args(Aspect))}")
    square = {name: value for name, value in (("image_size", image_size), ("aspect", aspect)) if value is not None}
    if str(name_or_path) in VARIANTS:
        backbone = _load_variant(str(name_or_path), weights, square, statistics)
    elif weights is not None:
        raise UsageError(f"weights {weights} need the name of their architecture, not {str(name_or_path)!r}")
    elif is_hub_name(name_or_path):
        name = str(name_or_path)
        backbone = _freeze(load_family_folder(fetch_folder(name)), name, None, square, statistics)
    else:
        backbone = _load_path(Path(name_or_path), square, statistics)
    where = device if isinstance(device, torch.device) else resolve_device(device)
    logger.debug(f"backbone {backbone.name} from {backbone.source} on {where}, fingerprint {backbone.fingerprint[:16]}")
    return backbone.to(where)


Statistics = tuple[tuple[float, ...], tuple[float, ...]]
Square = Mapping[str, Any]
"""The fields `image_size` and `aspect` of a preprocessing, as far as they are given."""


def _with_statistics(preprocessing: Preprocessing, statistics: Statistics | None) -> Preprocessing:
    """Return the preprocessing with another mean and std."""
    if statistics is None:
        return preprocessing
    try:
        return Preprocessing(**{**preprocessing.model_dump(), "mean": statistics[0], "std": statistics[1]})
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"`mean` and `std` cannot be used: {problem}") from None


def _load_variant(
    name: str, weights: str | Path | None, square: Square, statistics: Statistics | None
) -> FrozenBackbone:
    variant = VARIANTS[name]
    if "image_size" in square:
        check_image_size(square["image_size"], variant.patch_size)  # before a long download
    if weights is None and variant.release is None:
        raise UsageError(f"{name} has no released weights; pretrain it, or give `weights=FILE`")
    if weights is None and statistics is not None:
        raise UsageError(f"the released weights of {name} have a known mean and std; leave `mean` and `std` out")
    path = Path(weights) if weights is not None else cached_weights(name)
    vit = build_with_weights(variant.config(), read_weights(path), str(path))
    source = None if weights is None else str(path)
    preprocessing = _with_statistics(Preprocessing(), statistics).model_copy(update=square)
    return FrozenBackbone(vit, preprocessing, name, source, stated_statistics=statistics is not None)


def _freeze(
    loaded: LoadedFamily, name: str, source: str | None, square: Square, statistics: Statistics | None
) -> FrozenBackbone:
    """Return a model of another library as a frozen backbone. A warning says if its mean and std are assumed."""
    preprocessing = loaded.preprocessing
    if statistics is not None:
        preprocessing = _with_statistics(preprocessing, statistics)
    elif not loaded.known_statistics:
        logger.warning(
            f"{name}: its files name no mean and std; assumed are mean {_numbers(preprocessing.mean)} and std "
            f"{_numbers(preprocessing.std)}; give those of its pretraining by `mean` and `std`"
        )
    stated = statistics is not None or not loaded.known_statistics
    return FrozenBackbone(loaded.model, preprocessing.model_copy(update=square), name, source, stated_statistics=stated)


def _numbers(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _load_path(path: Path, square: Square, statistics: Statistics | None) -> FrozenBackbone:
    if not path.exists():
        known = did_you_mean(str(path), VARIANTS) if path.name == str(path) else ""
        known = known or "; `dinomed models` lists the names"
        raise UsageError(f"backbone {str(path)!r} is no known name and no existing path{known}")
    if path.is_file():
        if not (path.suffix == ".safetensors" and has_entry(path, HEADER)):
            return _freeze(load_tensor_file(path), path.name, str(path), square, statistics)
        raise UsageError(f"{path} is a part of a backbone folder of dinomed; give the folder {path.parent}")
    folder = path / RUN_BACKBONE if (path / RUN_BACKBONE).is_dir() else path
    if (folder / "adapter.json").exists():
        raise UsageError(f"{path} is an adapter; give the backbone that it was trained on")
    if not any((folder / file).is_file() for file in (*FOLDER_FILES, INDEX_FILE)):
        if (path / RUN_CHECKPOINTS).exists() or (path / RUN_RECORD).exists():
            raise UsageError(f"{path} is a run without a backbone yet; its first checkpoint writes one")
        raise MissingInputError(
            f"{path} holds no backbone (a run of dinomed pretrain, or {CONFIG_FILE} and {WEIGHTS_FILE})"
        )
    name = path.resolve().parent.name if path.name == RUN_BACKBONE else path.resolve().name
    file = folder / WEIGHTS_FILE
    if not file.is_file() or not has_entry(file, HEADER):
        return _freeze(load_family_folder(folder), name, str(folder), square, statistics)
    remedy = "copy it again, or load the last checkpoint of its run"
    record = parse_record(file, read_header(file, HEADER, remedy), BackboneRecord, FORMAT, remedy)
    if statistics not in (None, (record.preprocessing.mean, record.preprocessing.std)):
        raise UsageError(f"backbone {path} records its mean and std; leave `mean` and `std` out")
    tensors = read_tensors(file)
    check_tensors(file, tensors, record.weights_sha256, remedy)
    vit = build_with_weights(record.architecture, convert(tensors), str(file))
    return FrozenBackbone(vit, record.preprocessing.model_copy(update=square), name, str(path), record.metadata)
