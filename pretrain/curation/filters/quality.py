"""Image quality: measures of an image, and the filters that compare them with thresholds.

Measures and thresholds are separate, so that other thresholds need no second pass over the pixels.
"""

from dataclasses import dataclass, fields

import cv2
import numpy as np

from dinomed.burned_in_text.find import text_share
from dinomed.pretrain.curation.filters.config import QualityConfig

WORKING_SIDE = 256
"""Short side in px to which larger images are reduced before they are measured."""
_DARK = 24  # grey levels: maximum of a black border, with compression noise
_FLAT = 6  # grey levels: maximum range of a row of a uniform border
_CLIPPED = 250
_CONTENT = 0.1  # minimum share of the image; with less, the whole image is measured, and not only a caption on black


@dataclass(frozen=True)
class Quality:
    """Measures of one image. Grey levels are Rec. 601 luma, 0 to 255; shares are of the area, 0 to 1."""

    short_side_px: int  # of the original image; the other measures are at `WORKING_SIDE`
    luminance_mean: float  # grey levels, of the content (everything but the border)
    luminance_spread: float  # grey levels, standard deviation of the content
    sharpness: float  # variance of the Laplacian of the content, squared grey levels: 0 up to some thousands
    overexposed_share: float  # of the content: at least two channels are clipped (250 or more)
    border_share: float  # dark and connected to the edge of the image, or uniform rows and columns at the edge
    text_share: float  # inside the boxes of lines of text (`dinomed.burned_in_text`)


MEASURES = tuple(field.name for field in fields(Quality))

QUALITY_REASONS = ("too small", "black", "over-exposed", "blank", "borders", "blurred", "text")
"""Reasons that `judge` returns; the first that applies wins."""


def measure_quality(image: np.ndarray, *, with_text: bool = True) -> Quality:
    """Measure the quality of an image, uint8 RGB ``(H, W, 3)``; 30 ms on one core, 100 ms at 1920x1080.

    Args:
        image: the image.
        with_text: search for text; if False, `text_share` is 0.
    """
    short = min(image.shape[:2])
    small = image
    if short > WORKING_SIDE:
        size = tuple(round(side * WORKING_SIDE / short) for side in image.shape[1::-1])
        small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    gray = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))
    border = find_border(gray)
    content = ~border if (~border).mean() >= _CONTENT else np.ones_like(border)
    # two pixels inside the content: the edge at the border is not sharpness of the image
    inside = cv2.erode(content.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=1) > 0
    laplacian = cv2.Laplacian(gray, cv2.CV_32F)
    return Quality(
        short_side_px=int(short),
        luminance_mean=float(gray[content].mean()),
        luminance_spread=float(gray[content].std()),
        sharpness=float(laplacian[inside if inside.any() else content].var()),
        overexposed_share=float((np.median(small, axis=2) >= _CLIPPED)[content].mean()),
        border_share=float(border.mean()),
        text_share=text_share(image) if with_text else 0.0,
    )


def judge(quality: Quality, config: QualityConfig) -> str | None:
    """Return the reason to drop an image, one of `QUALITY_REASONS`, or None to keep it."""

    def below(value: float, least: float | None) -> bool:
        return least is not None and value < least

    def above(value: float, most: float | None) -> bool:
        return most is not None and value > most

    fails = (
        below(quality.short_side_px, config.min_short_side_px),
        below(quality.luminance_mean, config.min_luminance_mean),
        above(quality.overexposed_share, config.max_overexposed_share),
        below(quality.luminance_spread, config.min_luminance_spread),
        above(quality.border_share, config.max_border_share),
        below(quality.sharpness, config.min_sharpness),
        above(quality.text_share, config.max_text_share),
    )
    return next((reason for reason, failed in zip(QUALITY_REASONS, fails, strict=True) if failed), None)


def judge_all(measures: dict[str, np.ndarray], config: QualityConfig) -> list[str | None]:
    """Return the reason of each of N images as `judge` does; `measures` are the columns of `MEASURES`, (N,) each."""
    columns = [measures[name].tolist() for name in MEASURES]
    return [judge(Quality(*values), config) for values in zip(*columns, strict=True)]


def find_border(gray: np.ndarray) -> np.ndarray:
    """Find the border around the content of a grey image, uint8 ``(H, W)``. Return a mask, bool ``(H, W)``.

    A border is a dark region that reaches the edge (the surround of an endoscope, the rim of a dermatoscope), or
    uniform rows and columns at the edge (white or grey padding).
    """
    _, labels = cv2.connectedComponents((gray <= _DARK).astype(np.uint8), connectivity=4)
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    joined = np.zeros(int(labels.max()) + 1, bool)
    joined[edge] = True
    joined[0] = False  # label 0 is the background
    border = joined[labels]
    top, bottom, left, right = find_content(gray, _FLAT)
    frame = np.ones_like(border)
    frame[top:bottom, left:right] = False
    return np.asarray(border | frame)


def find_content(picture: np.ndarray, flat: int) -> tuple[int, int, int, int]:
    """Find the content inside the uniform bands at the edges of an image, uint8 ``(H, W)`` or ``(H, W, C)``.

    Args:
        flat: maximum range of levels of a uniform row or column, in each channel.

    Returns:
        (top, bottom, left, right); bottom and right are exclusive. In an image of one level top equals bottom.
    """

    def uniform(band: np.ndarray) -> bool:
        return bool(np.ptp(band.astype(np.int16), axis=0).max() <= flat) if len(band) else True

    top, bottom, left, right = 0, picture.shape[0], 0, picture.shape[1]
    while top < bottom and uniform(picture[top]):
        top += 1
    while bottom > top and uniform(picture[bottom - 1]):
        bottom -= 1
    while left < right and uniform(picture[top:bottom, left]):
        left += 1
    while right > left and uniform(picture[top:bottom, right - 1]):
        right -= 1
    return top, bottom, left, right
