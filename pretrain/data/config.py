"""Settings of crops and their augmentation. This module imports neither OpenCV nor torch."""

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from dinomed.config import Config
from dinomed.modalities import CROP_PRESETS

Range = tuple[float, float]


class EarlyCropConfig(Config):
    """Smaller crops in the first part of a run: most steps are cheap, and the last ones learn the full resolution."""

    fraction: float = Field(0.75, gt=0, lt=1, description="fraction of the run with these sizes")
    global_size: int = Field(ge=8, le=4096, description="side of the global views in that part, px")
    local_size: int = Field(ge=8, le=4096, description="side of the local views in that part, px")


class CropConfig(Config):
    """Settings of crops and augmentation. Sizes are in px, scales are fractions of the image area."""

    modality: Literal["natural", "dermoscopy", "endoscopy", "xray", "ultrasound", "fundus"] = Field(
        "natural", description="preset of colours and flips; settings that are given replace those of the preset"
    )
    global_size: int = Field(224, ge=8, le=4096, description="side of the two global views, px")
    global_scale: Range = Field(
        (0.32, 1.0), description="smallest and largest area of a global view, as a fraction of the image"
    )
    local_size: int = Field(98, ge=8, le=4096, description="side of the local views, px")
    local_scale: Range = Field(
        (0.05, 0.32), description="smallest and largest area of a local view, as a fraction of the image"
    )
    num_local: int = Field(8, ge=0, le=256, description="local views of each image")
    early: EarlyCropConfig | None = Field(
        None, description="other sizes for the first part of the run; null: the same sizes in the whole run"
    )
    horizontal_flip: float = Field(0.5, ge=0, le=1, description="probability")
    vertical_flip: float = Field(0.0, ge=0, le=1, description="probability")
    jitter: tuple[float, float, float, float] = Field(
        (0.4, 0.4, 0.2, 0.1), description="largest change of brightness, contrast, saturation and hue"
    )
    jitter_probability: float = Field(0.8, ge=0, le=1, description="probability of the change of colours")
    gray_probability: float = Field(0.2, ge=0, le=1, description="probability of a view in shades of grey")
    blur: Literal["paper", "released"] = Field(
        "paper", description="probabilities for the first global, second global and local views: 1 / 0.1 / 0.5 as in "
        "the paper; the released code inverts them by accident: 0 / 0.9 / 0.5"
    )  # fmt: skip
    blur_kernel: int = Field(9, ge=3, description="px, odd")
    blur_sigma: Range = Field((0.1, 2.0), description="smallest and largest sigma of the blur, px")
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

    def smallest_area(self, anchor_scale: int = 1) -> int:
        """Return the smallest image area, in pixels, at which no crop must be enlarged (apart from its aspect).

        Args:
            anchor_scale: the global views are also computed at this multiple of their size.
        """
        areas = [(anchor_scale * self.global_size) ** 2 / self.global_scale[0]]
        if self.num_local:
            areas.append(self.local_size**2 / self.local_scale[0])
        return math.ceil(max(areas))
