"""Dice, IoU, HD95 and surface Dice of binary masks, image by image, by MONAI, with one policy for empty masks.

Policy:
- both masks empty: Dice, IoU and surface Dice are 1 (nothing was there, nothing was found); one empty: they are 0;
- HD95 is nan as soon as one mask is empty, since there is no surface to measure to. Its mean is over the images where
  it is defined, and the others are counted.

HD95 is in pixels of the image's own size: the larger of the two directed 95th percentiles of surface distances.
Surface Dice (Nikolov et al. 2018) is the share of both outlines that lies within a tolerance of the other one. By
lesion and not by pixel: `dinomed.metrics.lesions`.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice

TOLERANCE_SHARE = 0.005
"""The tolerance of the surface Dice as a share of the image's diagonal: 1.25 px at 200x150, 4.4 px at 700x525."""


@dataclass(frozen=True)
class Overlap:
    """How one predicted mask fits its reference; `hd95_px` may be nan."""

    dice: float
    iou: float
    hd95_px: float
    truth_empty: bool
    prediction_empty: bool
    surface_dice: float = float("nan")


def overlap(truth: np.ndarray, prediction: np.ndarray) -> Overlap:
    """Compare two masks (H, W) of 0 and 1; the tolerance of the surface Dice is `tolerance_px` of their size."""
    assert truth.shape == prediction.shape, (truth.shape, prediction.shape)
    truth, prediction = truth.astype(bool), prediction.astype(bool)
    y, p = (torch.from_numpy(np.ascontiguousarray(mask))[None, None].float() for mask in (truth, prediction))
    empty = not truth.any(), not prediction.any()
    distance, surface = float("nan"), float(all(empty))
    if not any(empty):  # MONAI answers nan or inf for these
        tolerance = [tolerance_px(truth.shape)]
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # MONAI's own, on its own call
            distance = float(compute_hausdorff_distance(p, y, include_background=True, percentile=95))
            surface = float(compute_surface_dice(p, y, tolerance, include_background=True))
    return Overlap(
        dice=float(compute_dice(p, y, include_background=True, ignore_empty=False)),
        iou=float(compute_iou(p, y, include_background=True, ignore_empty=False)),
        hd95_px=distance,
        truth_empty=empty[0],
        prediction_empty=empty[1],
        surface_dice=surface,
    )


def tolerance_px(shape: tuple[int, ...]) -> float:
    """How far two outlines in an image of (height, width) px may lie apart and still agree, px."""
    return TOLERANCE_SHARE * float(np.hypot(shape[0], shape[1]))


def segmentation_metrics(overlaps: Sequence[Overlap]) -> dict[str, Any]:
    """Means over images, and how many of them were special.

    Returns:
        `n`; `dice`, `iou`, `surface_dice`, `hd95_px` (means), `dice_median`; `hd95_undefined`, `empty_truth`,
        `empty_prediction` (counts of images).
    """
    distances = np.array([one.hd95_px for one in overlaps])
    defined = distances[~np.isnan(distances)]
    return {
        "n": len(overlaps),
        "dice": _mean(np.array([one.dice for one in overlaps])),
        "dice_median": float(np.median([one.dice for one in overlaps])) if overlaps else float("nan"),
        "iou": _mean(np.array([one.iou for one in overlaps])),
        "surface_dice": _mean(np.array([one.surface_dice for one in overlaps])),
        "hd95_px": _mean(defined),
        "hd95_undefined": len(distances) - len(defined),
        "empty_truth": sum(one.truth_empty for one in overlaps),
        "empty_prediction": sum(one.prediction_empty for one in overlaps),
    }


class DiceByThreshold:
    """The mean Dice over images at every threshold of a grid, from one histogram an image.

    The policy for empty masks is that of `overlap`.
    """

    def __init__(self, thresholds: Sequence[float]) -> None:
        self.thresholds = np.asarray(thresholds, np.float64)
        assert (np.diff(self.thresholds) > 0).all()
        self._sum, self._count = np.zeros(len(self.thresholds)), 0

    def add(self, truth: np.ndarray, probability: np.ndarray) -> None:
        """One image: a mask and a probability map, both (H, W); a pixel is predicted at or above the threshold."""
        assert truth.shape == probability.shape, (truth.shape, probability.shape)
        # bin i: at or above the first i thresholds; exact comparison in the map's own type
        bins = np.searchsorted(self.thresholds.astype(probability.dtype), probability.ravel(), side="right")
        size = len(self.thresholds) + 1
        positive = truth.ravel().astype(bool)
        predicted = np.bincount(bins, minlength=size)[::-1].cumsum()[::-1][1:]
        hit = np.bincount(bins[positive], minlength=size)[::-1].cumsum()[::-1][1:]
        total = predicted + positive.sum()
        self._sum += np.where(total > 0, 2 * hit / np.maximum(total, 1), 1.0)
        self._count += 1

    @property
    def dice(self) -> np.ndarray:
        """Mean Dice at each threshold, float64."""
        return self._sum / max(self._count, 1)

    def best(self) -> tuple[float, float]:
        """(threshold, its mean Dice); of equals the one nearest to 0.5."""
        dice = self.dice
        candidates = np.flatnonzero(dice >= dice.max() - 1e-9)
        index = min(candidates, key=lambda i: abs(self.thresholds[i] - 0.5))
        return float(self.thresholds[index]), float(dice[index])


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
