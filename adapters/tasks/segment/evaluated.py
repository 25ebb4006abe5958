"""Evaluated masks: beside the metrics of each image, the area of its reference mask, and Dice at every threshold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dinomed.adapters.evaluated import EvaluatedValues
from dinomed.adapters.tasks.areas import AREA_COLUMN, summarize_areas
from dinomed.adapters.tasks.volume_metrics import CaseValues
from dinomed.metrics.bootstrap import RESAMPLES

SIZES = ("smallest third", "middle third", "largest third")


@dataclass
class EvaluatedMasks(EvaluatedValues):
    """Images with the values of `EvaluatedValues`.

    Args:
        target_shares: share of each image in its reference mask (of any class), float (N,), 0 to 1.
        by_threshold: (threshold, mean Dice) of a segmenter of one class; None for several classes.
        cases_by_kind: Dice and HD95 by volume, of slices, or by video, of frames.
        areas_mm2: class to the areas of the reference and the predicted mask of each image; None if not known.
    """

    target_shares: np.ndarray = field(default_factory=lambda: np.zeros(0))
    by_threshold: Sequence[tuple[float, float]] | None = None
    cases_by_kind: Sequence[CaseValues] = ()
    areas_mm2: Mapping[str, Sequence[tuple[float, float] | None]] = field(default_factory=dict)

    def details(self, resamples: int = RESAMPLES) -> dict[str, Any]:
        """Return `dice_by_size` (rows of `size`, `n` and `dice`) and `dice_by_threshold` (rows, or None); of slices
        also `by_volume`, and of frames `by_video` (`CaseValues.summarize`); of images with pixel spacing `area_mm2`
        (`summarize_areas`)."""
        curve = self.by_threshold
        areas = summarize_areas(self.areas_mm2, self.groups, resamples)
        return {
            "dice_by_size": self._by_size(),
            "dice_by_threshold": None
            if curve is None
            else [{"threshold": threshold, "dice": dice} for threshold, dice in curve],
            **{f"by_{cases.kind}": cases.summarize(resamples) for cases in self.cases_by_kind},
            **({} if areas is None else {AREA_COLUMN: areas}),
        }

    def _by_size(self) -> list[dict[str, Any]]:
        """Return the mean Dice of the images without a lesion, and of thirds of the others by the area of the mask."""
        dice, shares = self.columns["dice"], self.target_shares
        empty = shares == 0
        parts = [("no lesion", np.flatnonzero(empty))] if empty.any() else []
        order = np.flatnonzero(~empty)[np.argsort(shares[~empty], kind="stable")]
        for name, rows in zip(SIZES, np.array_split(order, len(SIZES)), strict=True):
            if len(rows):
                low, high = 100 * shares[rows[0]], 100 * shares[rows[-1]]
                parts.append((f"{name}: {low:.3g}% to {high:.3g}% of the image", rows))
        return [{"size": name, "n": len(rows), "dice": float(np.nanmean(dice[rows]))} for name, rows in parts]
