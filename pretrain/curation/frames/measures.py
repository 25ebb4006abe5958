"""Measures of frames: black and blurred frames, frames outside of the body, and scene changes."""

import cv2
import numpy as np

from dinomed.pretrain.curation.filters.config import QualityConfig
from dinomed.pretrain.curation.filters.quality import find_border, judge, measure_quality
from dinomed.pretrain.curation.frames.config import FrameConfig

OUTSIDE = "out of body"
_SIDE = 256  # px of the longer side on which the colours are measured
_REDDISH = 1.15  # ratio of red to green and to blue, from which a pixel counts as tissue
_DARK = 40  # red levels; darker pixels have no reliable colour
_GRAY = 6  # levels between the channels of a gray pixel, with compression noise
_GRAY_SHARE = 0.9  # of the pixels; then the frame is gray, as of ultrasound, and its colours say nothing


def quality_limits(config: FrameConfig) -> QualityConfig:
    """Return the limits of the quality filters for frames."""
    limits = QualityConfig(
        min_short_side_px=None, max_border_share=None, max_text_share=None,
        min_luminance_mean=config.min_luminance, min_sharpness=config.min_sharpness,
    )  # fmt: skip
    return limits if config.min_luminance > 0 else limits.model_copy(update={"min_luminance_spread": None})


def find_fault(pixels: np.ndarray, limits: QualityConfig, min_tissue: float) -> str | None:
    """Return why a frame, uint8 RGB ``(H, W, 3)``, is not used: black, over-exposed, blank, blurred or out of body."""
    reason = judge(measure_quality(pixels, with_text=False), limits)
    if reason is None and min_tissue > 0:
        share = tissue_share(pixels)
        reason = OUTSIDE if share is not None and share < min_tissue else None
    return reason


def tissue_share(pixels: np.ndarray) -> float | None:
    """Return the share of reddish pixels in the content of a frame, 0 to 1; None for a gray frame.

    White light on mucosa is reddish. Under narrow-band light or dyes it is not.
    """
    scale = _SIDE / max(pixels.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in pixels.shape[1::-1])
    small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)) if scale < 1 else pixels
    content = ~find_border(np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)))
    colours = small[content].astype(np.float32)
    if not len(colours) or (np.ptp(colours, axis=1) <= _GRAY).mean() >= _GRAY_SHARE:
        return None
    red, rest = colours[:, 0], colours[:, 1:].max(axis=1)
    return float(((red >= _REDDISH * rest) & (red > _DARK)).mean())


def scene_difference(before: np.ndarray, after: np.ndarray) -> float:
    """Return the mean difference of two thumbnails, grey levels 0 to 255."""
    return float(np.abs(before.astype(np.int16) - after.astype(np.int16)).mean())
