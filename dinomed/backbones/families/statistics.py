"""Preprocessing from the config files of timm and of transformers: mean, std, image size and interpolation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import TokenModel
from dinomed.errors import DinomedError
from dinomed.io.files import read_json
from dinomed.log import logger

PROCESSOR_FILE = "preprocessor_config.json"
_PIL_FILTERS = {2: "bilinear", 3: "bicubic"}
_NEAREST = {"random": "bicubic", "lanczos": "bicubic", 1: "bicubic"}  # instead of missing ones


def build_preprocessing(place: Path | str, model: TokenModel, values: Mapping[str, Any]) -> tuple[Preprocessing, bool]:
    """Build the preprocessing of a model.

    The size is reduced to a multiple of the patch size: with patches of 14 px, 384 px become 378 px.

    Args:
        place: file that names the values, for messages.
        model: the model.
        values: any of image_size, mean, std, interpolation.

    Returns:
        The preprocessing, and whether `values` has mean and std.
    """
    values = {key: value for key, value in values.items() if value is not None}
    size = values.get("image_size")
    if isinstance(size, int) and size % model.patch_size:
        values["image_size"] = max(size // model.patch_size, 1) * model.patch_size
        logger.info(f"{place}: image size {size} is no multiple of the patch size; {values['image_size']} px is used")
    known = "mean" in values and "std" in values
    if not known:
        values.pop("mean", None), values.pop("std", None)
        if model.in_channels != 3:
            values |= {"mean": (0.5,) * model.in_channels, "std": (0.25,) * model.in_channels}
    try:
        return Preprocessing(channels=model.in_channels, **values), known
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"])) or "mean and std"
        raise DinomedError(f"{place}: cannot be used: {field}: {problem['msg']}") from None


def timm_preprocessing(folder: Path, config: Mapping[str, Any], model: TokenModel) -> tuple[Preprocessing, bool]:
    """Return the preprocessing that a config of timm names in `pretrained_cfg`, or on its first level."""
    inside = config.get("pretrained_cfg")
    known: Mapping[str, Any] = inside if isinstance(inside, dict) else config
    size = known.get("input_size")
    return build_preprocessing(
        folder / "config.json",
        model,
        {
            "image_size": size[-1] if isinstance(size, list) and size else None,
            "mean": known.get("mean"),
            "std": known.get("std"),
            "interpolation": _interpolation(known.get("interpolation")),
        },
    )


def timm_reading(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the entries of `pretrained_cfg` for a preprocessing; `timm_preprocessing` reads them."""
    side = preprocessing.image_size
    return {
        "input_size": [preprocessing.channels, side, side], "fixed_input_size": True,
        "interpolation": preprocessing.interpolation, "crop_pct": 1.0, "crop_mode": "squash",
        "mean": list(preprocessing.mean), "std": list(preprocessing.std),
    }  # fmt: skip


def transformers_processor(preprocessing: Preprocessing, name: str) -> dict[str, Any]:
    """Return the content of `preprocessor_config.json`; `transformers_preprocessing` reads it.

    Args:
        preprocessing: the values.
        name: class of the image processor.
    """
    square = {"height": preprocessing.image_size, "width": preprocessing.image_size}
    return {
        "image_processor_type": name, "do_resize": True, "size": square,
        "resample": {kind: number for number, kind in _PIL_FILTERS.items()}[preprocessing.interpolation],
        "do_center_crop": False, "crop_size": square, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(preprocessing.mean), "image_std": list(preprocessing.std),
        "do_convert_rgb": preprocessing.channels == 3,
    }  # fmt: skip


def transformers_preprocessing(
    folder: Path, model: TokenModel, default_size: int | None = None
) -> tuple[Preprocessing, bool]:
    """Return the preprocessing that `preprocessor_config.json` names; without the file only the size is known.

    The image is resized, not cropped, to the size of the crop, or else to that of the resizing.
    """
    path = folder / PROCESSOR_FILE
    known = read_json(path) if path.is_file() else {}
    if not isinstance(known, dict):
        raise DinomedError(f"{path}: no table of settings")
    known = known.get("image_processor", known)
    mean, std = known.get("image_mean"), known.get("image_std")
    if known.get("do_normalize") is False:
        mean, std = (0.0,) * model.in_channels, (1.0,) * model.in_channels
    size = _side(known.get("crop_size")) or _side(known.get("size")) or default_size
    return build_preprocessing(
        path if path.is_file() else folder / "config.json",
        model,
        {"image_size": size, "mean": mean, "std": std, "interpolation": _interpolation(known.get("resample"))},
    )


def _side(size: Any) -> int | None:
    """Return the side of a size in the forms that transformers writes: a number, or a table."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def _interpolation(name: Any) -> str | None:
    name = _PIL_FILTERS.get(name, name) if isinstance(name, int) else name
    if name in _NEAREST:
        logger.info(f"interpolation {name!r} of the config: {_NEAREST[name]} is used")
        return _NEAREST[name]
    return name if name in _PIL_FILTERS.values() else None
