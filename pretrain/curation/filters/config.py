"""Settings of the filters: allow and deny lists, image quality, faces."""

from typing import Literal

from pydantic import Field

from dinomed.config import Config


class RulesConfig(Config):
    """Allow and deny lists: patterns for each column.

    A pattern (``*``, ``?``, ``[a-z]``) must match the whole value, and is case-sensitive. Column `image` is the path.
    """

    allow: dict[str, tuple[str, ...]] = Field({}, description="each of these columns must match one of its patterns")
    deny: dict[str, tuple[str, ...]] = Field({}, description="no column may match one of its patterns")


class QualityConfig(Config):
    """Thresholds of the quality filters; null switches a filter off.

    With the defaults, 2,159 of 2,160 real images pass (dermoscopy from two sources, endoscopy; see docs/curation.md).
    """

    min_short_side_px: int | None = Field(64, ge=1, description="below this, an image is too small")
    min_luminance_mean: float | None = Field(16.0, ge=0, le=255, description="below this, an image is black")
    max_overexposed_share: float | None = Field(
        0.5, ge=0, le=1, description="above this share of clipped pixels, an image is over-exposed"
    )
    min_luminance_spread: float | None = Field(3.0, ge=0, description="below this, an image is blank (one colour)")
    max_border_share: float | None = Field(
        0.75, ge=0, le=1, description="above this share of borders, an image is dropped"
    )
    min_sharpness: float | None = Field(4.0, ge=0, description="below this, an image is blurred")
    max_text_share: float | None = Field(0.1, ge=0, le=1, description="above this share of text, an image is dropped")


class FacesConfig(Config):
    """Detection of frontal faces with the cascade classifier of scikit-image."""

    action: Literal["off", "drop", "blur"] = Field(
        "off", description="images with faces: keep them, drop them, or write copies with blurred faces"
    )
    min_share: float = Field(0.08, gt=0, le=1, description="minimum side of a face, as a share of the short side")
    min_neighbors: int = Field(8, ge=1, description="overlapping detections per face; lower: more false positives")
