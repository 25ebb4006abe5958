"""Random augmentation of training images together with their masks or depth maps, by albumentations 2.0.8.

Images are augmented after they were resized to the input size of the backbone. The augmentation of an image depends
only on the seed, the pass and the row, not on the thread or on earlier images. So a resumed fit uses the same images.
"""

import os
import threading
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from dinomed.config import Config
from dinomed.datasets.manifest import Manifest
from dinomed.log import logger
from dinomed.modalities import HEAD_PRESETS, MODALITIES

if TYPE_CHECKING:
    from dinomed.backbones.frozen import FrozenBackbone

Preset = Literal["none", "auto", "general", "light", "dermoscopy", "endoscopy", "xray", "ultrasound", "fundus"]
_PROBABILITY = 0.8  # of the affine transform, and of the colour change


class AugmentConfig(Config):
    """Augmentation settings: ``dermoscopy`` is a preset, ``{preset: dermoscopy, rotate: 20}`` changes single values.

    The preset ``auto`` is the modality of the images if it is known, else ``general`` (`resolve_augmentation`).

    Flips, quarter turns and blur are probabilities. For the other settings each image draws a value between minus and
    plus the setting.
    """

    preset: Preset = Field(
        "none", description="values to start from; auto: the modality of the images if it is known, else general"
    )
    horizontal_flip: float = Field(0.0, ge=0, le=1, description="probability")
    vertical_flip: float = Field(0.0, ge=0, le=1, description="probability")
    quarter_turn: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability of a random multiple of 90 degrees (rectangles: 180), without interpolation",
    )
    rotate: float = Field(0.0, ge=0, le=180, description="degrees; pixels beyond the border are mirrored")
    scale: float = Field(0.0, ge=0, le=0.5, description="relative change of size; not used for depth maps")
    shift: float = Field(0.0, ge=0, le=0.5, description="relative to the side of the image")
    brightness: float = Field(0.0, ge=0, le=1, description="largest relative change")
    contrast: float = Field(0.0, ge=0, le=1, description="largest relative change")
    saturation: float = Field(0.0, ge=0, le=1, description="only for images of three channels, as is hue")
    hue: float = Field(0.0, ge=0, le=0.5, description="largest shift, as a fraction of the colour circle")
    blur: float = Field(0.0, ge=0, le=1, description="probability of a Gaussian blur")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        data = {"preset": "none" if data is None else data} if data is None or isinstance(data, str) else data
        preset = data.get("preset") if isinstance(data, dict) else None
        known = HEAD_PRESETS.get(preset, {}) if isinstance(preset, str) else {}
        return {**known, **data} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _auto_alone(self) -> "AugmentConfig":
        if self.preset == "auto" and self._any_value:
            raise ValueError("preset auto has no values of its own; name a preset to change some, such as general")
        return self

    @property
    def _any_value(self) -> bool:
        return any(value for name, value in self if name != "preset")

    @property
    def active(self) -> bool:
        """Whether any augmentation is on."""
        return self.preset == "auto" or self._any_value

    def without_scale(self) -> "AugmentConfig":
        """Return the settings for depth estimation: a change of scale would change distances but not the depth map."""
        return self.model_copy(update={"scale": 0.0})


def resolve_augmentation(config: AugmentConfig, manifest: Manifest, backbone: "FrozenBackbone") -> AugmentConfig:
    """Replace the preset ``auto`` by the modality of the images; return other settings unchanged.

    The modality is the only value of the column ``modality`` of the manifest, else the ``crops.modality`` with which
    the backbone was pretrained, else ``general``.
    """
    if config.preset != "auto":
        return config
    values = set(manifest.column("modality")) if manifest.has("modality") else set()
    modality, origin = next(iter(values), None), "column modality"
    if len(values) != 1 or modality not in MODALITIES:
        modality, origin = backbone.metadata.get("modality"), "pretraining of the backbone"
    if modality not in MODALITIES:
        modality, origin = "general", "modality unknown; `settings=['augment=MODALITY']` adds its flips and colours"
    logger.info(f"training images are augmented: {modality} ({origin})")
    return AugmentConfig.model_validate(modality)


class Augment:
    """Augmentation of an image and its targets by the same transform.

    Args:
        channels: number of channels of the images.
    """

    def __init__(self, config: AugmentConfig, channels: int) -> None:
        self.config, self.channels = config, channels
        self._thread = threading.local()  # a Compose has a state, so each thread has its own
        build_transforms(config, channels)  # imports albumentations here (1 s), not in several threads at once

    def __call__(
        self, image: np.ndarray, targets: np.ndarray | None, seed: int, pass_index: int, row: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return an augmented image and its augmented targets.

        Args:
            image: (side, side, channels), uint8 or float32 in 0 to 1.
            targets: (planes, side, side), class values or depths (nan where unknown). Values are moved, never mixed.
            seed, pass_index, row: the augmentation depends only on these numbers.
        """
        if not hasattr(self._thread, "composes"):
            self._thread.composes = {
                square: build_transforms(self.config, self.channels, square) for square in (True, False)
            }
        compose = self._thread.composes[image.shape[0] == image.shape[1]]
        compose.set_random_seed(int(np.random.SeedSequence([seed, pass_index, row]).generate_state(1)[0]))
        if targets is None:
            return compose(image=image)["image"], None
        augmented = compose(image=image, mask=np.ascontiguousarray(targets.transpose(1, 2, 0)))
        mask = augmented["mask"].reshape(*augmented["mask"].shape[:2], len(targets))
        return augmented["image"], np.ascontiguousarray(mask.transpose(2, 0, 1))

    def targets(self, targets: np.ndarray, seed: int, pass_index: int, row: int) -> np.ndarray:
        """Return only the augmented targets, as `__call__` does for any image; nothing is read."""
        blank = np.zeros((*targets.shape[1:], self.channels), np.uint8)
        moved = self(blank, targets, seed, pass_index, row)[1]
        assert moved is not None
        return moved


def build_transforms(config: AugmentConfig, channels: int, square: bool = True) -> Any:
    """Build the `albumentations.Compose` of the settings, for squares or for rectangles, which keep their shape."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise it asks a server for newer versions
    import albumentations as A
    import cv2

    cv2.setNumThreads(0)
    c, parts = config, []
    for probability, flip in ((c.horizontal_flip, A.HorizontalFlip), (c.vertical_flip, A.VerticalFlip)):
        if probability:
            parts.append(flip(p=probability))
    if c.quarter_turn:
        half_turn = A.Sequential([A.HorizontalFlip(p=1.0), A.VerticalFlip(p=1.0)], p=c.quarter_turn / 2)
        parts.append(A.RandomRotate90(p=c.quarter_turn) if square else half_turn)
    if c.rotate or c.scale or c.shift:
        parts.append(
            A.Affine(
                rotate=(-c.rotate, c.rotate), scale=(1 - c.scale, 1 + c.scale), translate_percent=(-c.shift, c.shift),
                border_mode=cv2.BORDER_REFLECT_101, mask_interpolation=cv2.INTER_NEAREST, p=_PROBABILITY,
            )
        )  # fmt: skip
    if channels == 3 and (c.saturation or c.hue):
        ranges = [(1 - value, 1 + value) for value in (c.brightness, c.contrast, c.saturation)]
        parts.append(A.ColorJitter(*ranges, hue=(-c.hue, c.hue), p=_PROBABILITY))
    elif c.brightness or c.contrast:
        parts.append(A.RandomBrightnessContrast(c.brightness, c.contrast, p=_PROBABILITY))
    if c.blur:
        parts.append(A.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 1.5), p=c.blur))
    return A.Compose(parts, seed=0)
