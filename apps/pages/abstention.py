"""Section of risk-coverage curves on the page of an evaluation."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dinomed.adapters.evaluated import EvaluatedUnits
from dinomed.apps.pages.plots import square
from dinomed.html.page import build_table, heading, paragraph
from dinomed.html.words import format_interval
from dinomed.metrics.uncertainty.risk_coverage import RiskCoverage

CURVE_COLUMNS = ("order of the images", "area under the curve", "95% interval", "without order", "smallest possible")
THRESHOLD_COLUMNS = (
    "threshold from val", "coverage on val", "loss on val", "coverage", "95% interval", "loss of the kept",
    "95% interval",
)  # fmt: skip


def build_abstention_section(result: Mapping[str, Any], evaluated: EvaluatedUnits) -> list[str]:
    """Return the curves, their areas, and the thresholds that were chosen on val; nothing without a confidence."""
    abstention = result["abstention"]
    if abstention is None or evaluated.losses is None:
        return []
    note = (
        f"The mean loss ({abstention['loss']}) of the images that are kept, if those at the end of the order are "
        "abstained. A small area is a good order; without information it is the loss of all images."
    )
    parts = [heading("Abstention"), paragraph(note), build_table(curve_columns(result), curve_rows(result))]
    known = np.isfinite(evaluated.losses)
    lines = {}
    for name, confidence in evaluated.confidences.items():
        coverage, risk = RiskCoverage(confidence[known], evaluated.losses[known]).points()
        if risk.max(initial=0.0) <= 1:  # the plot is a unit square; errors with a unit have no such limit
            lines[name] = list(zip(coverage.tolist(), risk.tolist(), strict=True))
    if lines:
        parts.append(square(lines, "Risk-coverage curves", ("share of images that is kept", "mean loss")))
    rows = threshold_rows(result)
    if rows:
        text = "Thresholds that were chosen on val, by `dinomed predict --abstain`, measured on these images:"
        parts += [paragraph(text), build_table(THRESHOLD_COLUMNS, rows)]
    return parts


def curve_rows(result: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return a row of `CURVE_COLUMNS` for each confidence, followed by the risk of the most confident shares."""
    return [
        (name, curve["aurc"], format_interval(curve["aurc_low"], curve["aurc_high"]), curve["aurc_uninformed"],
         curve["aurc_best"], *curve["risk"].values())
        for name, curve in result["abstention"]["curves"].items()
    ]  # fmt: skip


def threshold_rows(result: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return a row of `THRESHOLD_COLUMNS` for each threshold."""
    return [
        (row["threshold"], row["coverage_of_val"], row["risk_of_val"], row["coverage"],
         format_interval(row["coverage_low"], row["coverage_high"]), row["risk"],
         format_interval(row["risk_low"], row["risk_high"]))
        for row in result["abstention"]["thresholds"]
    ]  # fmt: skip


def curve_columns(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns of `curve_rows`."""
    first = next(iter(result["abstention"]["curves"].values()))
    return (*CURVE_COLUMNS, *(f"loss of the first {float(share):.0%}" for share in first["risk"]))
