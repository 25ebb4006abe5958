"""Settings of the selection of frames of videos."""

from pydantic import Field

from dinomed.config import Config


class FrameConfig(Config):
    """Which frames of a video are kept; a limit of 0 drops nothing.

    Measures are those of the quality filters (`dinomed.pretrain.curation.filters.quality`), with the same defaults.
    """

    fps: float = Field(1.0, ge=0, le=1000, description="frames a second; 0 takes every frame")
    scene_change: float | None = Field(
        None, gt=0, le=255, description="also take a frame whose mean grey difference to the one before is above this"
    )
    duplicate_bits: int = Field(
        24,
        ge=-1,
        le=255,
        description="of the 256 of a hash: frames that differ in at most so many are near-duplicates; -1: all are kept",
    )
    duplicate_cosine: float = Field(
        0.7,
        ge=0,
        le=1,
        description="cosine of the descriptors above which frames are near-duplicates; 1: hashes only",
    )
    min_luminance: float = Field(16.0, ge=0, le=255, description="mean grey level; below it a frame is black")
    min_sharpness: float = Field(4.0, ge=0, description="variance of the Laplacian; below it a frame is blurred")
    min_tissue: float = Field(
        0.25, ge=0, le=1, description="share of reddish pixels; below it a colour frame is outside of the body"
    )
