"""Thresholds of confidence below which a prediction is abstained, chosen on validation images.

Two rules: keep a share of the validation images (coverage), or keep as many as possible with a mean loss of at most a
limit (risk). Both are measured by group, each group with the weight of one image: a patient with many images decides
no more than another one. The chosen coverage and risk hold on the validation images; on new images they are estimates
with the error of the sample, and the risk is a little optimistic, because the threshold was chosen on the same images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinomed.metrics.bootstrap import group_index
from dinomed.metrics.ratios import divide


@dataclass(frozen=True)
class AbstentionTable:
    """The coverage and the risk on validation images of at most 101 thresholds of confidence, from the highest.

    Attributes:
        thresholds: float, falling; a prediction is kept if its confidence reaches the threshold.
        coverages: share of the validation images that are kept, rising to 1.
        risks: their mean loss.
    """

    thresholds: tuple[float, ...]
    coverages: tuple[float, ...]
    risks: tuple[float, ...]

    def at_coverage(self, coverage: float) -> int:
        """Return the place of the highest threshold that keeps at least `coverage` of the images."""
        return min(int(np.searchsorted(self.coverages, coverage - 1e-9)), len(self.coverages) - 1)

    def at_risk(self, risk: float) -> int | None:
        """Return the place of the lowest threshold whose risk is at most `risk`; None if no threshold reaches it."""
        places = np.flatnonzero(np.array(self.risks) <= risk + 1e-12)
        return int(places[-1]) if len(places) else None


def abstention_table(confidence: np.ndarray, losses: np.ndarray, groups: Sequence[object]) -> AbstentionTable:
    """Measure coverage and risk at every percentile of the confidence.

    Args:
        confidence: float (N,), finite.
        losses: float (N,).
        groups: group of each image, N.
    """
    index = group_index(groups)
    weights = 1 / np.bincount(index)[index]
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])  # the last image of each step of equal confidences
    kept = weights[order].cumsum()[ends]
    lost = (weights * losses)[order].cumsum()[ends]
    coverage, risk = kept / kept[-1], divide(lost, kept)
    places = np.unique(np.searchsorted(coverage, np.linspace(0.01, 1, 100) - 1e-9).clip(0, len(ends) - 1))
    return AbstentionTable(
        tuple(ordered[ends][places].tolist()), tuple(coverage[places].tolist()), tuple(risk[places].tolist())
    )
