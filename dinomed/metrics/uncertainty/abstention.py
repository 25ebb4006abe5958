"""Thresholds of confidence below which a prediction is abstained, chosen on validation images.

Two rules: keep a share of the validation images (coverage), or keep as many as possible with a mean loss of at most a
limit (risk). Both are measured by group, each group with the weight of one image: a patient with many images decides
no more than another one. The chosen coverage and risk hold on the validation images; on new images they are estimates
with the error of the sample, and the risk is a little optimistic, because the threshold was chosen on the same images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator

from dinomed.config import Config
from dinomed.errors import UsageError
from dinomed.metrics.bootstrap import group_index
from dinomed.metrics.ratios import divide


@dataclass(frozen=True)
class AbstentionRule:
    """A threshold of confidence: a prediction is kept if its confidence reaches it.

    Attributes:
        threshold: smallest confidence of a kept prediction.
        coverage: share of the validation images that are kept.
        risk: mean loss of these images.
        loss: name of the loss.
    """

    threshold: float
    coverage: float
    risk: float
    loss: str

    def abstains(self, confidence: np.ndarray) -> np.ndarray:
        """Return which predictions are abstained, bool (N,); confidences (N,) are rounded as in the table."""
        return confidence < self.threshold - 1e-9

    def describe(self, unit: str, chosen_on: str, confidence: str = "its confidence") -> str:
        """Return the rule in words.

        Args:
            unit: what is abstained: image, group, frame or video.
            chosen_on: on what the threshold was chosen: image or group.
            confidence: what is compared with the threshold.
        """
        article = "An" if unit.startswith("i") else "A"
        return (
            f"{article} {unit} is abstained if {confidence} is below {self.threshold:.4g}, which {self.coverage:.0%} "
            f"of the validation {chosen_on}s reach, with a mean loss of {self.risk:.3f} ({self.loss})."
        )


class AbstentionTable(Config):
    """The coverage and the risk on validation images of at most 100 thresholds of confidence, from the highest.

    Attributes:
        loss: name of the loss.
        thresholds: falling; a prediction is kept if its confidence reaches the threshold.
        coverages: share of the validation images that are kept, rising to 1.
        risks: their mean loss.
    """

    loss: str
    thresholds: tuple[float, ...] = Field(min_length=1, max_length=100)
    coverages: tuple[float, ...]
    risks: tuple[float, ...]

    @model_validator(mode="after")
    def _fits(self) -> "AbstentionTable":
        if not len(self.thresholds) == len(self.coverages) == len(self.risks):
            raise ValueError("thresholds, coverages and risks differ in length")
        if (np.diff(self.thresholds) >= 0).any() or (np.diff(self.coverages) <= 0).any():
            raise ValueError("thresholds do not fall, or coverages do not rise")
        return self

    def at_coverage(self, coverage: float) -> AbstentionRule:
        """Return the highest threshold that keeps at least `coverage` of the validation images."""
        return self._rule(min(int(np.searchsorted(self.coverages, coverage - 1e-9)), len(self.coverages) - 1))

    def at_risk(self, risk: float) -> AbstentionRule:
        """Return the threshold that keeps the most validation images with a mean loss of at most `risk`.

        Raises:
            UsageError: no threshold reaches the risk.
        """
        places = np.flatnonzero(np.array(self.risks) <= risk + 1e-12)
        if not len(places):
            raise UsageError(
                f"`max_risk={risk:g}`: on the validation images the smallest risk ({self.loss}) of any threshold is "
                f"{min(self.risks):.3g}; give it or more"
            )
        return self._rule(int(places[-1]))

    def _rule(self, place: int) -> AbstentionRule:
        return AbstentionRule(self.thresholds[place], self.coverages[place], self.risks[place], self.loss)


def choose_rule(
    table: AbstentionTable | None,
    abstain: float | None = None,
    max_risk: float | None = None,
    *,
    remedy: str = "",
) -> AbstentionRule | None:
    """Return the rule that a user asks for; None if neither share nor risk is given.

    Args:
        table: thresholds of an adapter, or None if it has none.
        abstain: share of the validation images that is abstained, in [0, 1).
        max_risk: largest mean loss of the kept validation images, 0 to 1.
        remedy: advice for an adapter without a table; by default to train again.

    Raises:
        UsageError: a value is out of its range, both are given, or the adapter has no table.
    """
    if abstain is None and max_risk is None:
        return None
    if abstain is not None and max_risk is not None:
        raise UsageError("`abstain` and `max_risk` exclude each other; give one of them")
    name, value = ("abstain", abstain) if max_risk is None else ("max_risk", max_risk)
    assert value is not None
    if not 0 <= value < 1:
        raise UsageError(f"`{name}={value:g}`: give a share from 0 to below 1, such as 0.2")
    if table is None:
        remedy = remedy or "train a classifier or a segmenter again"
        raise UsageError(f"`{name}={value:g}`: the adapter has no thresholds of confidence; {remedy}")
    return table.at_coverage(1 - value) if max_risk is None else table.at_risk(value)


def abstention_table(
    confidence: np.ndarray, losses: np.ndarray, groups: Sequence[object], loss: str
) -> AbstentionTable:
    """Measure coverage and risk at every percentile of the confidence.

    Args:
        confidence: float (N,), finite, rounded as in the table of predictions.
        losses: float (N,).
        groups: group of each image, N.
        loss: name of the loss.
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
    parts = (tuple(values[places].tolist()) for values in (ordered[ends], coverage, risk))
    return AbstentionTable(loss=loss, **dict(zip(("thresholds", "coverages", "risks"), parts, strict=True)))
