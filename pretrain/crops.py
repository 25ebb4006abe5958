"""Multi-crop: one image to two global views and several local ones (Caron et al. 2020; DINOv2 settings).

The crop itself is cut here (area-averaged when it shrinks, bicubic when it grows); flips and colours are
albumentations', an order of magnitude faster than the same on tensors. Everything drawn for an image comes from one
seed, so an image's views do not depend on which worker made them: that is what makes a resumed run exact.
"""

import os
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from dinomed.config import Config

Range = tuple[float, float]


PRESETS: dict[str, dict[str, Any]] = {
    "natural": {},
    # any way up; hue and saturation tell lesions apart
    "dermoscopy": {
        "jitter": (0.2, 0.2, 0.1, 0.02), "gray_probability": 0.0, "solarize_probability": 0.0, "vertical_flip": 0.5,
    },
    # any way up; light and white balance vary, red and brown are not the same
    "endoscopy": {
        "jitter": (0.3, 0.3, 0.15, 0.03), "gray_probability": 0.0, "solarize_probability": 0.0, "vertical_flip": 0.5,
    },
    # the heart is on the left, the diaphragm below; no colour, and inverted is another picture
    "xray": {
        "jitter": (0.3, 0.3, 0.0, 0.0), "gray_probability": 0.0, "solarize_probability": 0.0, "horizontal_flip": 0.0,
    },
    # depth goes down: shadows and enhancement lie below what casts them
    "ultrasound": {"jitter": (0.3, 0.3, 0.0, 0.0), "gray_probability": 0.0, "solarize_probability": 0.0},
    # mirrored, it is the other eye; the vessels' arcades are above and below
    "fundus": {"jitter": (0.2, 0.2, 0.1, 0.02), "gray_probability": 0.0, "solarize_probability": 0.0},
}  # fmt: skip
"""What a modality changes of the recipe's colours and flips: what would turn a finding into another one is off."""


class CropConfig(Config):
    """Sizes in px, scales as fractions of the image's area, probabilities in [0, 1]."""

    modality: Literal["natural", "dermoscopy", "endoscopy", "xray", "ultrasound", "fundus"] = Field(
        "natural", description="presets of colours and flips; what is given besides stays"
    )
    global_size: int = Field(224, ge=8)
    global_scale: Range = (0.32, 1.0)
    local_size: int = Field(98, ge=8)
    local_scale: Range = (0.05, 0.32)
    num_local: int = Field(8, ge=0)
    horizontal_flip: float = Field(0.5, ge=0, le=1)
    vertical_flip: float = Field(0.0, ge=0, le=1)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
    jitter_probability: float = Field(0.8, ge=0, le=1)
    gray_probability: float = Field(0.2, ge=0, le=1)
    blur: Literal["paper", "released"] = Field(
        "paper", description="probability for the first global, second global and local views: 1 / 0.1 / 0.5 as the "
        "paper says; the released code inverts it by accident: 0 / 0.9 / 0.5"
    )  # fmt: skip
    blur_kernel: int = Field(9, ge=3, description="px, odd")
    blur_sigma: Range = (0.1, 2.0)
    solarize_probability: float = Field(0.2, ge=0, le=1, description="second global view only, at half the range")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        return {**PRESETS.get(data.get("modality", ""), {}), **data} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _ranges(self) -> "CropConfig":
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} {low, high}: expected 0 < low <= high <= 1")
        if not all(0 <= value <= 1 for value in self.jitter[:3]) or not 0 <= self.jitter[3] <= 0.5:
            raise ValueError(f"jitter {self.jitter}: expected three values from 0 to 1 and a hue from 0 to 0.5")
        if self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel {self.blur_kernel} is even; a kernel has a middle")
        return self

    def blur_probabilities(self) -> tuple[float, float, float]:
        """For the first global, the second global and the local views."""
        return (1.0, 0.1, 0.5) if self.blur == "paper" else (0.0, 0.9, 0.5)


class MultiCrop:
    """``crops(image, seed)``: uint8 (H, W, channels) -> globals (2, s, s, channels), locals (n, t, t, channels)."""

    def __init__(self, config: CropConfig) -> None:
        self.config = config
        first, second, local = config.blur_probabilities()
        self._first = _colours(config, blur=first, solarize=0.0)
        self._second = _colours(config, blur=second, solarize=config.solarize_probability)
        self._local = _colours(config, blur=local, solarize=0.0)

    def __call__(self, image: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        c = self.config
        for compose, sub_seed in zip(
            (self._first, self._second, self._local), rng.integers(0, 2**31, 3).tolist(), strict=True
        ):
            compose.set_random_seed(sub_seed)
        views = [
            compose(image=random_resized_crop(image, c.global_size, c.global_scale, rng))["image"]
            for compose in (self._first, self._second)
        ]
        crops = [
            self._local(image=random_resized_crop(image, c.local_size, c.local_scale, rng))["image"]
            for _ in range(c.num_local)
        ]
        channels = image.shape[2]
        empty = np.empty((0, c.local_size, c.local_size, channels), np.uint8)
        return np.stack(views), np.stack(crops) if crops else empty


def random_resized_crop(
    image: np.ndarray, size: int, scale: Range, rng: np.random.Generator, aspect: Range = (3 / 4, 4 / 3)
) -> np.ndarray:
    """A window of `scale` of the area and log-uniform `aspect`, resized to (size, size, channels).

    As torchvision's RandomResizedCrop: ten tries, then the largest centred window of an allowed aspect.
    """
    import cv2

    height, width, channels = image.shape
    top, left, rows, columns = _window(height, width, scale, aspect, rng)
    window = np.ascontiguousarray(image[top : top + rows, left : left + columns])
    shrinks = rows >= size and columns >= size
    out = cv2.resize(window, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return out.reshape(size, size, channels)  # cv2 drops a single channel


def _window(
    height: int, width: int, scale: Range, aspect: Range, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = np.exp(rng.uniform(*np.log(aspect)))
        columns, rows = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
            return int(top), int(left), rows, columns
    rows, columns = height, width
    if width / height < aspect[0]:
        rows = round(width / aspect[0])
    elif width / height > aspect[1]:
        columns = round(height * aspect[1])
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _colours(config: CropConfig, *, blur: float, solarize: float) -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks the network for its newest version
    import albumentations as A
    import cv2

    cv2.setNumThreads(0)  # workers are the parallelism
    brightness, contrast, saturation, hue = config.jitter
    return A.Compose(
        [
            A.HorizontalFlip(p=config.horizontal_flip),
            A.VerticalFlip(p=config.vertical_flip),
            A.ColorJitter(
                brightness=_around_one(brightness),
                contrast=_around_one(contrast),
                saturation=_around_one(saturation),
                hue=(-hue, hue),
                p=config.jitter_probability,
            ),
            A.ToGray(p=config.gray_probability),
            A.GaussianBlur(blur_limit=(config.blur_kernel, config.blur_kernel), sigma_limit=config.blur_sigma, p=blur),
            A.Solarize(threshold_range=(0.5, 0.5), p=solarize),
        ],
        seed=0,
    )


def _around_one(strength: float) -> Range:
    return max(0.0, 1 - strength), 1 + strength
