"""Risk-coverage curves of an evaluation, and the thresholds of confidence from val measured on its images."""

from typing import Any

import numpy as np

from dinomed.adapters.evaluated import EvaluatedUnits
from dinomed.metrics.bootstrap import RESAMPLES, bootstrap, group_index
from dinomed.metrics.ratios import divide
from dinomed.metrics.uncertainty.abstention import AbstentionTable
from dinomed.metrics.uncertainty.risk_coverage import RiskCoverage, summarize_curve

COVERAGES = (0.95, 0.9, 0.8, 0.7, 0.5)
"""Coverages on val whose thresholds are measured."""


def summarize_abstention(evaluated: EvaluatedUnits, resamples: int = RESAMPLES) -> dict[str, Any] | None:
    """Return the risk-coverage curves of all confidences; None without one, or without a defined loss.

    Args:
        evaluated: predictions with their losses and confidences.
        resamples: number of bootstrap resamples of the groups.

    Returns:
        - `loss`: name of the loss; `n`: number of units with a defined loss.
        - `curves`: name of a confidence to the entries of `dinomed.metrics.uncertainty.risk_coverage.summarize_curve`,
          with `aurc_low` and `aurc_high`.
        - `thresholds`: for thresholds of the first confidence that were chosen on val: `threshold`, `coverage_of_val`,
          `risk_of_val`, and here `coverage` and `risk` with `_low` and `_high`, each group with the weight of one image
          as on val. Empty for an adapter without them.
    """
    if evaluated.losses is None or not evaluated.confidences:
        return None
    rows = np.flatnonzero(np.isfinite(evaluated.losses))
    if not len(rows):
        return None
    losses, groups = evaluated.losses[rows], [evaluated.groups[row] for row in rows]
    curves = {}
    for name, confidence in evaluated.confidences.items():
        curve = RiskCoverage(confidence[rows], losses)
        interval = bootstrap(curve.area, groups, resamples=resamples)[0]
        summary = summarize_curve(curve)
        curves[name] = summary | {"aurc_low": interval.low, "aurc_high": interval.high}
    first = next(iter(evaluated.confidences.values()))[rows]
    table = evaluated.abstention
    return {
        "loss": evaluated.loss_name,
        "n": len(rows),
        "curves": curves,
        "thresholds": [] if table is None else _measure_thresholds(table, first, losses, groups, resamples),
    }


def _measure_thresholds(
    table: AbstentionTable, confidence: np.ndarray, losses: np.ndarray, groups: list[str], resamples: int
) -> list[dict[str, float]]:
    """Return coverage and risk of the thresholds that kept `COVERAGES` of the images of val."""
    rules = list({rule.threshold: rule for rule in map(table.at_coverage, COVERAGES)}.values())
    index = group_index(groups)
    weights = 1 / np.bincount(index)[index]
    kept = weights[:, None] * np.stack([~rule.abstains(confidence) for rule in rules], axis=1)

    def values(counts: np.ndarray) -> np.ndarray:
        number = counts @ kept
        total = np.broadcast_to((counts @ weights)[:, None], number.shape)
        return np.concatenate([divide(number, total), divide(counts @ (kept * losses[:, None]), number)], axis=1)

    point = values(np.ones((1, len(losses))))[0]
    intervals = bootstrap(values, groups, resamples=resamples)
    measured = []
    for place, rule in enumerate(rules):
        row = {"threshold": rule.threshold, "coverage_of_val": rule.coverage, "risk_of_val": rule.risk}
        for name, column in (("coverage", place), ("risk", place + len(rules))):
            row |= {name: float(point[column])}
            row |= {f"{name}_low": intervals[column].low, f"{name}_high": intervals[column].high}
        measured.append(row)
    return measured
