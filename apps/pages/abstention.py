"""Section of risk-coverage curves on the page of an evaluation."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from dinomed.adapters.evaluated import LIKENESS, EvaluatedUnits
from dinomed.adapters.tasks.classify.evaluated import CONFIDENCE as PROBABILITY
from dinomed.adapters.tasks.segment.evaluate import CONFIDENCE as DICE
from dinomed.apps.pages.plots import square
from dinomed.html.page import build_table, heading, paragraph
from dinomed.html.words import format_interval
from dinomed.metrics.uncertainty.risk_coverage import RiskCoverage

SHARES = "images that are kept"
ORDERS = {
    DICE: "sorted by the Dice that the head's probabilities predict",
    PROBABILITY: "sorted by the probability of the predicted class",
    LIKENESS: "sorted by the distance to their features, the nearest first",
}
"""What each order of the images means."""
THRESHOLD_COLUMNS = (
    "threshold from val", "coverage on val", "loss on val", "coverage", "95% interval", "loss of the kept",
    "95% interval",
)  # fmt: skip
THRESHOLD_NOTE = (
    "An image below the threshold is abstained. Coverage is the share of the images that are kept, and the loss is the "
    "mean of these. The columns without val are measured on the images of this page, with their 95% intervals."
)


def build_abstention_section(result: Mapping[str, Any], evaluated: EvaluatedUnits) -> list[str]:
    """Return the curves, their areas, and the thresholds that were chosen on val; nothing without a confidence."""
    abstention = result["abstention"]
    if abstention is None or evaluated.losses is None:
        return []
    first, *lines_of_columns = describe_curves(result)
    parts = [heading("Abstention"), paragraph(first), build_table(*curve_table(result))]
    parts += [f'<p class="soft">{"<br>".join(escape(line) for line in lines_of_columns)}</p>']
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
        parts.append(f'<p class="soft">{escape(THRESHOLD_NOTE)}</p>')
    return parts


def curve_table(result: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return the columns and the rows of a table: a column for each order of the images, a row for each kept share."""
    curves = result["abstention"]["curves"]
    columns, each = (SHARES, *curves), list(curves.values())
    rows = [
        ("all" if float(share) == 1 else f"{float(share):.0%}", *(curve["risk"][share] for curve in each))
        for share in each[0]["risk"]
    ]
    rows.append(("mean of all shares (AURC)", *(curve["aurc"] for curve in each)))
    rows.append(("95% interval of the AURC", *(format_interval(c["aurc_low"], c["aurc_high"]) for c in each)))
    rows.append(("AURC of the best order", *(curve["aurc_best"] for curve in each)))
    return columns, rows


def describe_curves(result: Mapping[str, Any]) -> list[str]:
    """Return lines that explain the values of `curve_table`, each of its columns, and the area under the curve."""
    return [
        f"Abstention: mean loss ({result['abstention']['loss']}) of the images that are kept. Lower is better.",
        f"{SHARES}: those at the start of the order of a column, as a share of all images.",
        *(f"{name}: {ORDERS[name]}." for name in result["abstention"]["curves"] if name in ORDERS),
        "AURC: the loss of all images if the order says nothing. The best order sorts by the loss itself.",
    ]


def threshold_rows(result: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return a row of `THRESHOLD_COLUMNS` for each threshold."""
    return [
        (row["threshold"], row["coverage_of_val"], row["risk_of_val"], row["coverage"],
         format_interval(row["coverage_low"], row["coverage_high"]), row["risk"],
         format_interval(row["risk_low"], row["risk_high"]))
        for row in result["abstention"]["thresholds"]
    ]  # fmt: skip
