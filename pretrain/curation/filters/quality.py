"""Is a picture fit to learn from? Facts that are measured, and thresholds that a config sets.

Nothing is deleted: the verdict is a word that the manifest keeps. Facts and thresholds are separate, so that other
thresholds need no second look at the pixels.
"""

from dataclasses import dataclass, fields

import cv2
import numpy as np

from dinomed.pretrain.curation.filters.config import QualityConfig
from dinomed.pretrain.curation.filters.text import text_share

WORKING_SIDE = 256
"""Short side in px at which a larger picture is judged; a smaller one is judged as it is."""
_DARK = 24  # grey levels: the black of a border, with the noise of its compression
_FLAT = 6  # grey levels that a row of a uniform border spans at most
_CLIPPED = 250
_CONTENT = 0.1  # share of the picture; with less the whole is judged, or a caption on black would be all there is


@dataclass(frozen=True)
class Quality:
    """What is measured on one picture. Grey levels are Rec. 601 luma, 0 to 255; shares are of its area, 0 to 1."""

    short_side_px: int  # of the picture itself; all else is measured at `WORKING_SIDE`
    luminance_mean: float  # grey levels, of the content: what is no border
    luminance_spread: float  # grey levels, standard deviation of the content
    sharpness: float  # variance of the Laplacian of the content, squared grey levels: 0 up to some thousands
    overexposed_share: float  # of the content: where two channels or all are clipped (250 or more)
    border_share: float  # dark and joined to the edge of the picture, or uniform rows and columns at it
    text_share: float  # inside the boxes of lines of text (`dinomed.pretrain.curation.filters.text`)


MEASURES = tuple(field.name for field in fields(Quality))

QUALITY_REASONS = ("too small", "black", "over-exposed", "blank", "borders", "blurred", "text")
"""The words of `judge`; the first that applies is the reason."""


def measure_quality(image: np.ndarray) -> Quality:
    """The facts of a picture, uint8 RGB ``(H, W, 3)``; 30 ms on one core, 100 ms at 1920x1080."""
    short = min(image.shape[:2])
    small = image
    if short > WORKING_SIDE:
        size = tuple(round(side * WORKING_SIDE / short) for side in image.shape[1::-1])
        small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    gray = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))
    border = find_border(gray)
    content = ~border if (~border).mean() >= _CONTENT else np.ones_like(border)
    # two pixels inside it: the step to the border is no sharpness of the picture
    inside = cv2.erode(content.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=1) > 0
    laplacian = cv2.Laplacian(gray, cv2.CV_32F)
    return Quality(
        short_side_px=int(short),
        luminance_mean=float(gray[content].mean()),
        luminance_spread=float(gray[content].std()),
        sharpness=float(laplacian[inside if inside.any() else content].var()),
        overexposed_share=float((np.median(small, axis=2) >= _CLIPPED)[content].mean()),
        border_share=float(border.mean()),
        text_share=text_share(image),
    )


def judge(quality: Quality, config: QualityConfig) -> str | None:
    """Why the picture is not to be kept, one of `QUALITY_REASONS`; None if it is."""

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
    """What frames the content of a gray picture, uint8 ``(H, W)``: bool, of the same shape.

    Two kinds: dark regions that reach the edge (the surround of an endoscope, the rim of a dermatoscope), and rows
    and columns at the edge that are of one level (white or gray padding).
    """
    _, labels = cv2.connectedComponents((gray <= _DARK).astype(np.uint8), connectivity=4)
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    joined = np.zeros(int(labels.max()) + 1, bool)
    joined[edge] = True
    joined[0] = False  # the rest, which is no region
    border = joined[labels]
    top, bottom, left, right = find_content(gray, _FLAT)
    frame = np.ones_like(border)
    frame[top:bottom, left:right] = False
    return np.asarray(border | frame)


def find_content(picture: np.ndarray, flat: int) -> tuple[int, int, int, int]:
    """Rows and columns inside the uniform bands of a picture, uint8 ``(H, W)`` or ``(H, W, C)``: (top, bottom, left,
    right), the lower and right ones exclusive. A band's rows span at most `flat` levels in each channel. A picture that
    is all one level has no content, and then top is bottom."""

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
