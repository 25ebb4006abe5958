"""HTML page of few-shot results: metrics by the number of labels."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dinomed.adapters.evaluation.few_shot import METRICS
from dinomed.apps.pages.plots import bands
from dinomed.html.page import build_page, build_table, code, paragraph

TITLES = {"auroc": "AUROC (macro)", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy"}


def build_few_shot_page(report: Mapping[str, Any]) -> str:
    """Return the page, with the curves as SVG and without names of images or groups."""
    unit = report["unit"]
    opening = (
        f"Frozen features of {report['backbone']['name']}, class token of the last block; logistic regression, C = "
        f"{report['C']:g}, on the given number of labelled {unit} a class; split {report['split']}, {report['n']:,} "
        f"images. Each number is the mean over {report['seeds']} draws; the band goes from the lowest to the highest."
    )
    ticks = [shots_word(row["shots"]) for row in report["shots"]]
    figures = [
        bands(
            {TITLES[name]: [(row[name]["mean"], row[name]["low"], row[name]["high"]) for row in report["shots"]]},
            ticks, f"over labelled {unit} a class", (f"labelled {unit} a class", TITLES[name]),
        )
        for name in METRICS
    ]  # fmt: skip
    columns = [f"{unit} a class", "images used"]
    columns += [part for name in METRICS for part in (TITLES[name], "sd")]
    rows = [
        (tick, round(row["images"]), *(part for name in METRICS for part in (row[name]["mean"], row[name]["sd"])))
        for tick, row in zip(ticks, report["shots"], strict=True)
    ]
    parts = [paragraph(opening), *figures, build_table(columns, rows), paragraph(advice(report))]
    if report["fewer"]:
        counts = ", ".join(f"{name}: {count}" for name, count in report["fewer"].items())
        parts.append(paragraph(f"Classes with fewer labelled {unit} in train than the largest number: {counts}."))
    settings = {key: report[key] for key in ("backbone", "image_size", "seeds", "C", "split")}
    return build_page("How many labels?", [*parts, code("\n".join(f"{k}: {v}" for k, v in settings.items()))])


def advice(report: Mapping[str, Any]) -> str:
    """Return a sentence on the gain of the last increase of the number of labels."""
    rows = [row for row in report["shots"] if np.isfinite(row["auroc"]["mean"])]
    if len(rows) < 2:
        return "A single number of labels does not show what more labels would bring."
    before, last = rows[-2:]
    gain, spread = last["auroc"]["mean"] - before["auroc"]["mean"], max(before["auroc"]["sd"], last["auroc"]["sd"])
    step = f"From {shots_word(before['shots'])} to {shots_word(last['shots'])} the macro AUROC changes by {gain:+.3f}"
    if gain > max(spread, 0.005):
        return f"{step}, more than the spread between draws ({spread:.3f}): more labels are likely to help."
    return f"{step}, within the spread between draws or too little to matter ({spread:.3f}): look elsewhere for gains."


def shots_word(count: int | None) -> str:
    """Return a number of labels as text; None is all."""
    return "all" if count is None else str(count)
