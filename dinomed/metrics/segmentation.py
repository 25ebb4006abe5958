"""Dice, IoU, HD95 and surface Dice of binary masks, for each image or volume, by MONAI, with one policy for empty ones.

Policy:
- if both masks are empty, Dice, IoU and surface Dice are 1 (a correct empty prediction); if one is empty, they are 0;
- HD95 is nan if a mask is empty, since it has no surface. Its mean is over the images for which it is defined, and the
  others are counted.

HD95 is in pixels of the image's own size, and of a volume in mm: the larger of the two directed 95th percentiles of
surface distances.
Surface Dice (Nikolov et al. 2018) is the share of both outlines that lies within a tolerance of the other outline.
`dinomed.metrics.lesions` counts lesions, not pixels.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice

TOLERANCE_SHARE = 0.005
"""Tolerance of the surface Dice as a share of the diagonal of the image: 1.25 px at 200x150, 4.4 px at 700x525."""


@dataclass(frozen=True)
class Overlap:
    """Overlap of a predicted mask with its reference mask; `hd95_px` may be nan."""

    dice: float
    iou: float
    hd95_px: float
    target_empty: bool
    prediction_empty: bool
    surface_dice: float = float("nan")


def overlap(target: np.ndarray, prediction: np.ndarray) -> Overlap:
    """Compare two masks (H, W) of 0 and 1. The tolerance of the surface Dice is `tolerance_px` of their size."""
    assert target.shape == prediction.shape, (target.shape, prediction.shape)
    target, prediction = target.astype(bool), prediction.astype(bool)
    y, p = (torch.from_numpy(np.ascontiguousarray(mask))[None, None].float() for mask in (target, prediction))
    empty = not target.any(), not prediction.any()
    distance, surface = float("nan"), float(all(empty))
    if not any(empty):  # MONAI returns nan or inf for empty masks
        tolerance = [tolerance_px(target.shape)]
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of a call inside MONAI
            distance = float(compute_hausdorff_distance(p, y, include_background=True, percentile=95))
            surface = float(compute_surface_dice(p, y, tolerance, include_background=True))
    return Overlap(
        dice=float(compute_dice(p, y, include_background=True, ignore_empty=False)),
        iou=float(compute_iou(p, y, include_background=True, ignore_empty=False)),
        hd95_px=distance,
        target_empty=empty[0],
        prediction_empty=empty[1],
        surface_dice=surface,
    )


def tolerance_px(shape: tuple[int, ...]) -> float:
    """Return the tolerance of the surface Dice for an image of (height, width) px, in px."""
    return TOLERANCE_SHARE * float(np.hypot(shape[0], shape[1]))


def segmentation_metrics(overlaps: Sequence[Overlap]) -> dict[str, Any]:
    """Compute means over images, and count empty masks and undefined distances.

    Returns:
        `n`; `dice`, `iou`, `surface_dice`, `hd95_px` (means), `dice_median`; `hd95_undefined`, `empty_targets`,
        `empty_prediction` (counts of images).
    """
    distances = np.array([pair.hd95_px for pair in overlaps])
    defined = distances[~np.isnan(distances)]
    return {
        "n": len(overlaps),
        "dice": _mean(np.array([pair.dice for pair in overlaps])),
        "dice_median": float(np.median([pair.dice for pair in overlaps])) if overlaps else float("nan"),
        "iou": _mean(np.array([pair.iou for pair in overlaps])),
        "surface_dice": _mean(np.array([pair.surface_dice for pair in overlaps])),
        "hd95_px": _mean(defined),
        "hd95_undefined": len(distances) - len(defined),
        "empty_targets": sum(pair.target_empty for pair in overlaps),
        "empty_prediction": sum(pair.prediction_empty for pair in overlaps),
    }


@dataclass(frozen=True)
class VolumeOverlap:
    """Overlap of a predicted mask of a volume with its reference mask; `hd95_mm` may be nan."""

    dice: float
    hd95_mm: float


def volume_overlap(target: np.ndarray, prediction: np.ndarray, spacing_mm: tuple[float, float, float]) -> VolumeOverlap:
    """Compare two masks of a volume, (I, J, K) of 0 and 1, by the policy of the module.

    Args:
        spacing_mm: distance of neighbouring voxels along each axis; a sheared grid is measured as a right-angled one.
    """
    assert target.shape == prediction.shape, (target.shape, prediction.shape)
    target, prediction = target.astype(bool), prediction.astype(bool)
    sizes = int(target.sum()), int(prediction.sum())
    dice = 2 * int((target & prediction).sum()) / sum(sizes) if sum(sizes) else 1.0
    if not all(sizes):
        return VolumeOverlap(dice, float("nan"))
    y, p = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (target, prediction))
    spacing = [float(distance) for distance in spacing_mm]
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of a call inside MONAI
        distance = compute_hausdorff_distance(p, y, include_background=True, percentile=95, spacing=spacing)
    return VolumeOverlap(dice, float(distance))


class DiceByThreshold:
    """Mean Dice over images at every threshold of a grid, from one histogram for each image.

    The policy for empty masks is that of `overlap`.
    """

    def __init__(self, thresholds: Sequence[float]) -> None:
        self.thresholds = np.asarray(thresholds, np.float64)
        assert (np.diff(self.thresholds) > 0).all()
        self._values: list[np.ndarray] = []

    def add(self, target: np.ndarray, probability: np.ndarray) -> None:
        """Add an image: a mask and a probability map, both (H, W). A pixel is predicted at or above the threshold."""
        assert target.shape == probability.shape, (target.shape, probability.shape)
        # bin i: at or above the first i thresholds, compared in the type of the map
        bins = np.searchsorted(self.thresholds.astype(probability.dtype), probability.ravel(), side="right")
        size = len(self.thresholds) + 1
        positive = target.ravel().astype(bool)
        predicted = np.bincount(bins, minlength=size)[::-1].cumsum()[::-1][1:]
        hit = np.bincount(bins[positive], minlength=size)[::-1].cumsum()[::-1][1:]
        total = predicted + positive.sum()
        self._values.append(np.where(total > 0, 2 * hit / np.maximum(total, 1), 1.0))

    @property
    def dice(self) -> np.ndarray:
        """Mean Dice at each threshold, float64."""
        return np.mean(self._values, axis=0) if self._values else np.zeros(len(self.thresholds))

    def choose(self) -> tuple[float, float]:
        """Return a threshold and its mean Dice: the one nearest to 0.5 that is not clearly worse than the best.

        Clearly worse is a mean Dice that is lower by more than one standard error of the difference, paired by image
        (the rule of one standard error, Breiman et al. 1984, section 3.4.3). The best threshold of five images is
        mostly chance; with many images the standard error is small, and the best threshold is taken.
        """
        dice, count = self.dice, len(self._values)
        best = int(dice.argmax())
        losses = np.array(self._values)[:, [best]] - np.array(self._values)
        errors = losses.std(axis=0, ddof=1) / np.sqrt(count) if count > 1 else np.full(len(dice), np.inf)
        candidates = np.flatnonzero(dice[best] - dice <= errors + 1e-9)
        index = min(candidates, key=lambda i: (abs(self.thresholds[i] - 0.5), -dice[i]))
        return float(self.thresholds[index]), float(dice[index])


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
