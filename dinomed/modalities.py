"""Augmentation of imaging modalities: flips and colour changes that do not turn a finding into another one, and the
presets that pretraining and heads make of them.
"""

from typing import Any, NamedTuple


class Modality(NamedTuple):
    """Probabilities of flips, and the largest relative change of brightness, contrast, saturation and hue."""

    horizontal_flip: float
    vertical_flip: float
    jitter: tuple[float, float, float, float]


MODALITIES = {
    # any orientation; hue and saturation distinguish lesions
    "dermoscopy": Modality(0.5, 0.5, (0.2, 0.2, 0.1, 0.02)),
    # any orientation; light and white balance vary, but red and brown have different meanings
    "endoscopy": Modality(0.5, 0.5, (0.3, 0.3, 0.15, 0.03)),
    # the heart is on the left, the diaphragm below; no colour
    "xray": Modality(0.0, 0.0, (0.2, 0.2, 0.0, 0.0)),
    # depth points down: shadows and enhancement lie below their cause; no colour
    "ultrasound": Modality(0.5, 0.0, (0.2, 0.2, 0.0, 0.0)),
    # a horizontally mirrored image shows the other eye; the vascular arcades are above and below
    "fundus": Modality(0.5, 0.0, (0.2, 0.2, 0.1, 0.02)),
}


def _limits(modality: str) -> dict[str, Any]:
    horizontal_flip, vertical_flip, jitter = MODALITIES[modality]
    return {"horizontal_flip": horizontal_flip, "vertical_flip": vertical_flip, "jitter": jitter}


def _crop_preset(modality: str, **changes: Any) -> dict[str, Any]:
    return {**_limits(modality), "gray_probability": 0.0, "solarize_probability": 0.0, **changes}


CROP_PRESETS: dict[str, dict[str, Any]] = {
    "natural": {},
    "dermoscopy": _crop_preset("dermoscopy"),
    "endoscopy": _crop_preset("endoscopy"),
    "xray": _crop_preset("xray", jitter=(0.3, 0.3, 0.0, 0.0)),  # without colours, brightness and contrast vary more
    "ultrasound": _crop_preset("ultrasound", jitter=(0.3, 0.3, 0.0, 0.0)),
    "fundus": _crop_preset("fundus"),
}
"""Settings of the crops of pretraining (`dinomed.pretrain.data.crops`), without gray conversion and solarisation."""

_AFFINE = {"rotate": 15.0, "scale": 0.1, "shift": 0.05}


def _head_preset(modality: str, **changes: float) -> dict[str, float]:
    limits = _limits(modality)
    colours = dict(zip(("brightness", "contrast", "saturation", "hue"), limits.pop("jitter"), strict=True))
    return {**_AFFINE, **limits, **colours, **changes}


HEAD_PRESETS: dict[str, dict[str, float]] = {
    "none": {},
    "general": {**_AFFINE, "scale": 0.15, "brightness": 0.2, "contrast": 0.2, "saturation": 0.1, "hue": 0.02},
    "light": {**_AFFINE, "horizontal_flip": 0.5, "brightness": 0.1, "contrast": 0.1},
    # turns without interpolation, and no change of size: docs/log.md, 2026-11-29
    "dermoscopy": _head_preset("dermoscopy", quarter_turn=1.0, saturation=0.2, rotate=0.0, scale=0.0, shift=0.0),
    "endoscopy": _head_preset("endoscopy", rotate=180.0, scale=0.2, blur=0.2),
    "xray": _head_preset("xray", rotate=10.0),
    "ultrasound": _head_preset("ultrasound", blur=0.1),
    "fundus": _head_preset("fundus"),
}
"""Settings of the augmentation of heads (`dinomed.adapters.fitting.augment`). `general` is valid for every modality:
without flips, since masks can distinguish left and right. `auto` becomes one of them, see `resolve_augmentation`."""
