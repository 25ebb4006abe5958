"""Random changes of training images and of what is known of their pixels, together, by albumentations 2.0.8.

Images are changed at the size that the backbone sees, after they were squashed to it. Every change of an image depends
on the seed, the pass and the image alone, not on which thread makes it or what came before: an interrupted fit goes on
with the same pictures.
"""

import os
import threading
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from dinomed.config import Config

Preset = Literal["none", "light", "dermoscopy", "endoscopy", "xray", "ultrasound", "fundus"]
_MOVED = {"rotate": 15.0, "scale": 0.1, "shift": 0.05}
PRESETS: dict[str, dict[str, float]] = {
    "none": {},
    "light": {**_MOVED, "horizontal_flip": 0.5, "brightness": 0.1, "contrast": 0.1},
    # any way up; hue and saturation tell lesions apart
    "dermoscopy": {
        "rotate": 180.0, "scale": 0.15, "shift": 0.05, "horizontal_flip": 0.5, "vertical_flip": 0.5,
        "brightness": 0.2, "contrast": 0.2, "saturation": 0.1, "hue": 0.02, "blur": 0.1,
    },
    # any way up; light and white balance vary, red and brown are not the same
    "endoscopy": {
        "rotate": 180.0, "scale": 0.2, "shift": 0.05, "horizontal_flip": 0.5, "vertical_flip": 0.5,
        "brightness": 0.3, "contrast": 0.3, "saturation": 0.15, "hue": 0.03, "blur": 0.2,
    },
    # the heart is on the left, the diaphragm below
    "xray": {**_MOVED, "rotate": 10.0, "brightness": 0.2, "contrast": 0.2},
    # depth goes down: shadows and enhancement lie below what casts them
    "ultrasound": {**_MOVED, "horizontal_flip": 0.5, "brightness": 0.2, "contrast": 0.2, "blur": 0.1},
    # mirrored, it is the other eye; the vessels' arcades are above and below
    "fundus": {
        **_MOVED, "horizontal_flip": 0.5, "brightness": 0.2, "contrast": 0.2, "saturation": 0.1, "hue": 0.02,
    },
}  # fmt: skip
"""What becomes of an image of a modality; nothing that would turn a finding into another one."""
_SHARE = 0.8  # of images that are moved, and of those whose colours change


class AugmentConfig(Config):
    """`augment: dermoscopy` takes a preset as it is; ``{preset: dermoscopy, rotate: 20}`` changes what is named.

    Flips and blur are probabilities; of the others each image draws from minus to plus the value.
    """

    preset: Preset = "none"
    horizontal_flip: float = Field(0.0, ge=0, le=1)
    vertical_flip: float = Field(0.0, ge=0, le=1)
    rotate: float = Field(0.0, ge=0, le=180, description="degrees; what comes in at the border is mirrored")
    scale: float = Field(0.0, ge=0, le=0.5, description="share by which it is larger or smaller; not of depth maps")
    shift: float = Field(0.0, ge=0, le=0.5, description="share of the side")
    brightness: float = Field(0.0, ge=0, le=1)
    contrast: float = Field(0.0, ge=0, le=1)
    saturation: float = Field(0.0, ge=0, le=1, description="of three channels only, as hue")
    hue: float = Field(0.0, ge=0, le=0.5)
    blur: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        data = {"preset": "none" if data is None else data} if data is None or isinstance(data, str) else data
        preset = data.get("preset") if isinstance(data, dict) else None
        known = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
        return {**known, **data} if isinstance(data, dict) else data

    @property
    def active(self) -> bool:
        return any(value for name, value in self if name != "preset")

    def of_depth(self) -> "AugmentConfig":
        """Without a change of scale, which would bring things nearer and leave their depths as they are."""
        return self.model_copy(update={"scale": 0.0})


class Augment:
    """``augment(image, targets, seed, turn, row)``: both changed alike; the same numbers give the same change.

    Args:
        channels: of the images.
    """

    def __init__(self, config: AugmentConfig, channels: int) -> None:
        self.config, self.channels = config, channels
        self._own = threading.local()  # a Compose has a state: one for each thread
        build_transforms(config, channels)  # the import takes a second: here, and not in several threads at once

    def __call__(
        self, image: np.ndarray, targets: np.ndarray | None, seed: int, turn: int, row: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """uint8, or float32 in 0 to 1, (side, side, channels), and targets (planes, side, side) of whole numbers or of
        depths (nan: not known), whose values are moved and never mixed."""
        if not hasattr(self._own, "compose"):
            self._own.compose = build_transforms(self.config, self.channels)
        self._own.compose.set_random_seed(int(np.random.SeedSequence([seed, turn, row]).generate_state(1)[0]))
        if targets is None:
            return self._own.compose(image=image)["image"], None
        found = self._own.compose(image=image, mask=np.ascontiguousarray(targets.transpose(1, 2, 0)))
        mask = found["mask"].reshape(*found["mask"].shape[:2], len(targets))
        return found["image"], np.ascontiguousarray(mask.transpose(2, 0, 1))


def build_transforms(config: AugmentConfig, channels: int) -> Any:
    """The `albumentations.Compose` of `config`."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks a server for newer versions otherwise
    import albumentations as A
    import cv2

    cv2.setNumThreads(0)
    c, parts = config, []
    for share, flip in ((c.horizontal_flip, A.HorizontalFlip), (c.vertical_flip, A.VerticalFlip)):
        if share:
            parts.append(flip(p=share))
    if c.rotate or c.scale or c.shift:
        parts.append(
            A.Affine(
                rotate=(-c.rotate, c.rotate), scale=(1 - c.scale, 1 + c.scale), translate_percent=(-c.shift, c.shift),
                border_mode=cv2.BORDER_REFLECT_101, mask_interpolation=cv2.INTER_NEAREST, p=_SHARE,
            )
        )  # fmt: skip
    if channels == 3 and (c.saturation or c.hue):
        around = [(1 - value, 1 + value) for value in (c.brightness, c.contrast, c.saturation)]
        parts.append(A.ColorJitter(*around, hue=(-c.hue, c.hue), p=_SHARE))
    elif c.brightness or c.contrast:
        parts.append(A.RandomBrightnessContrast(c.brightness, c.contrast, p=_SHARE))
    if c.blur:
        parts.append(A.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 1.5), p=c.blur))
    return A.Compose(parts, seed=0)
