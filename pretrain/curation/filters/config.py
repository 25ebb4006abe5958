"""Settings of the filters: allow and deny lists, image quality, faces."""

from typing import Literal

from pydantic import Field

from dinomed.config import Config


class RulesConfig(Config):
    """Column -> patterns (``*``, ``?``, ``[a-z]``), which match whole values, case-sensitive; `image` is the path."""

    allow: dict[str, tuple[str, ...]] = Field({}, description="each of these columns must match one of its patterns")
    deny: dict[str, tuple[str, ...]] = Field({}, description="none of these columns may match one of its patterns")


class QualityConfig(Config):
    """Thresholds of the quality filters; null switches a filter off.

    With the defaults, 2,159 of 2,160 real images pass (dermoscopy from two sources, endoscopy; see docs/curation.md).
    """

    min_short_side_px: int | None = Field(64, ge=1)
    min_luminance_mean: float | None = Field(16.0, ge=0, le=255, description="below: black")
    max_overexposed_share: float | None = Field(0.5, ge=0, le=1)
    min_luminance_spread: float | None = Field(3.0, ge=0, description="below: blank, one colour")
    max_border_share: float | None = Field(0.75, ge=0, le=1)
    min_sharpness: float | None = Field(4.0, ge=0, description="below: blurred")
    max_text_share: float | None = Field(0.1, ge=0, le=1)


class FacesConfig(Config):
    """Frontal faces, detected by the cascade that scikit-image includes."""

    action: Literal["off", "drop", "blur"] = "off"
    min_share: float = Field(0.08, gt=0, le=1, description="minimum side of a face, as a share of the short side")
    min_neighbors: int = Field(8, ge=1, description="overlapping windows that must agree; fewer: more false alarms")
