"""Multi-crop: two global views and several local views of an image (Caron et al. 2020; DINOv2 settings).

Crops are resized here (area averaging to shrink, bicubic to enlarge); flips and colours are in
`dinomed.pretrain.data.colours`. All random numbers of an image come from one seed, so its views do not depend on the
worker that computes them, and a resumed run is exact.
"""

import math
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from dinomed.config import Config
from dinomed.modalities import CROP_PRESETS
from dinomed.pretrain.data.colours import Colours, Range, with_channels


class EarlyCropConfig(Config):
    """Smaller crops in the first part of a run: most steps are cheap, and the last ones learn the full resolution."""

    fraction: float = Field(0.75, gt=0, lt=1, description="fraction of the run with these sizes")
    global_size: int = Field(ge=8, le=4096, description="px")
    local_size: int = Field(ge=8, le=4096, description="px")


class CropConfig(Config):
    """Settings of crops and augmentation. Sizes are in px, scales are fractions of the image area."""

    modality: Literal["natural", "dermoscopy", "endoscopy", "xray", "ultrasound", "fundus"] = Field(
        "natural", description="preset of colours and flips; settings that are given replace those of the preset"
    )
    global_size: int = Field(224, ge=8, le=4096)
    global_scale: Range = (0.32, 1.0)
    local_size: int = Field(98, ge=8, le=4096)
    local_scale: Range = (0.05, 0.32)
    num_local: int = Field(8, ge=0, le=256)
    early: EarlyCropConfig | None = Field(
        None, description="other sizes for the first part of the run; null: the same sizes in the whole run"
    )
    horizontal_flip: float = Field(0.5, ge=0, le=1)
    vertical_flip: float = Field(0.0, ge=0, le=1)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
    jitter_probability: float = Field(0.8, ge=0, le=1)
    gray_probability: float = Field(0.2, ge=0, le=1)
    blur: Literal["paper", "released"] = Field(
        "paper", description="probabilities for the first global, second global and local views: 1 / 0.1 / 0.5 as in "
        "the paper; the released code inverts them by accident: 0 / 0.9 / 0.5"
    )  # fmt: skip
    blur_kernel: int = Field(9, ge=3, description="px, odd")
    blur_sigma: Range = (0.1, 2.0)
    solarize_probability: float = Field(
        0.2, ge=0, le=1, description="of the second global view; from half of the range on"
    )
    reduced_decoding: bool = Field(
        True, description="decode a large JPEG at a half (quarter, eighth) of its size if no crop must be enlarged then"
    )

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, data: Any) -> Any:
        return {**CROP_PRESETS.get(data.get("modality", ""), {}), **data} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _check_ranges(self) -> "CropConfig":
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} {low, high}: use 0 < low <= high <= 1")
        if not all(0 <= value <= 1 for value in self.jitter[:3]) or not 0 <= self.jitter[3] <= 0.5:
            raise ValueError(f"jitter {self.jitter}: use three values from 0 to 1 and a hue from 0 to 0.5")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"blur_sigma {self.blur_sigma}: use 0 < low <= high, px")
        if self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel {self.blur_kernel} is even; use an odd one")
        return self

    def early_steps(self, total_steps: int) -> int:
        """Return the number of first steps whose crops have the sizes of `early`."""
        return 0 if self.early is None else int(self.early.fraction * total_steps)

    def early_crops(self) -> "CropConfig":
        """Return the settings of the first part of the run; those of the whole run if `early` is not set."""
        if self.early is None:
            return self
        return self.model_copy(
            update={"global_size": self.early.global_size, "local_size": self.early.local_size, "early": None}
        )

    def blur_probabilities(self) -> tuple[float, float, float]:
        """Return the probabilities for the first global, the second global and the local views."""
        return (1.0, 0.1, 0.5) if self.blur == "paper" else (0.0, 0.9, 0.5)

    def needs_rgb(self) -> list[str]:
        """Return the names of the augmentations that are on and need RGB."""
        on = {
            "saturation": self.jitter[2] * self.jitter_probability,
            "hue": self.jitter[3] * self.jitter_probability,
            "gray": self.gray_probability,
        }
        return [name for name, strength in on.items() if strength]

    def without_rgb(self) -> "CropConfig":
        """Return the settings without the augmentations that `needs_rgb` names."""
        return self.model_copy(update={"jitter": (*self.jitter[:2], 0.0, 0.0), "gray_probability": 0.0})

    def smallest_area(self) -> int:
        """Return the smallest image area, in pixels, at which no crop must be enlarged (apart from its aspect)."""
        areas = [self.global_size**2 / self.global_scale[0]]
        if self.num_local:
            areas.append(self.local_size**2 / self.local_scale[0])
        return math.ceil(max(areas))


class MultiCrop:
    """Function from an image (H, W, channels), uint8 or float32, and a seed to its views of the same type:
    global views (2, s, s, channels) and local views (n, t, t, channels)."""

    def __init__(self, config: CropConfig) -> None:
        self.config = config
        first, second, local = config.blur_probabilities()
        self._globals = (_colours(config, first), _colours(config, second, config.solarize_probability))
        self._local = _colours(config, local)

    def __call__(self, image: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        c, channels = self.config, image.shape[2]
        views = [
            colours(random_resized_crop(image, c.global_size, c.global_scale, rng), rng) for colours in self._globals
        ]
        crops = np.empty((c.num_local, c.local_size, c.local_size, channels), image.dtype)
        for crop in crops:
            crop[:] = self._local(random_resized_crop(image, c.local_size, c.local_scale, rng), rng)
        return np.stack(views), crops


def random_resized_crop(
    image: np.ndarray, size: int, scale: Range, rng: np.random.Generator, aspect: Range = (3 / 4, 4 / 3)
) -> np.ndarray:
    """Cut a random window and resize it to (size, size, channels).

    It does what torchvision's RandomResizedCrop does: ten tries, then the largest centred window of an allowed aspect.

    Args:
        scale: lowest and highest share of the image area.
        aspect: lowest and highest width / height, log-uniform.
    """
    import cv2

    top, left, rows, columns = _window(image.shape[0], image.shape[1], scale, aspect, rng)
    window = image[top : top + rows, left : left + columns]
    if rows >= size and columns >= size:
        return with_channels(cv2.resize, window, (size, size), interpolation=cv2.INTER_AREA)
    out = with_channels(cv2.resize, window, (size, size), interpolation=cv2.INTER_CUBIC)
    return out if out.dtype == np.uint8 else np.clip(out, 0, 1, out=out)  # bicubic interpolation overshoots


def _window(
    height: int, width: int, scale: Range, aspect: Range, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Sample top, left, rows and columns of a window."""
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(10):
        u = rng.random(4).tolist()
        area = height * width * (scale[0] + u[0] * (scale[1] - scale[0]))
        ratio = math.exp(low + u[1] * (high - low))
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            return int(u[2] * (height - rows + 1)), int(u[3] * (width - columns + 1)), rows, columns
    rows, columns = height, width
    if width / height < aspect[0]:
        rows = round(width / aspect[0])
    elif width / height > aspect[1]:
        columns = round(height * aspect[1])
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _colours(config: CropConfig, blur: float, solarize: float = 0.0) -> Colours:
    return Colours(
        flips=(config.horizontal_flip, config.vertical_flip),
        jitter=config.jitter,
        jitter_probability=config.jitter_probability,
        gray=config.gray_probability,
        blur=blur,
        blur_kernel=config.blur_kernel,
        blur_sigma=config.blur_sigma,
        solarize=solarize,
    )
