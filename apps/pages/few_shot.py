"""HTML pages of few-shot results: metrics by the number of labels or masks."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dinomed.adapters.evaluation.few_shot import METRICS
from dinomed.apps.pages.plots import bands
from dinomed.html.page import build_page, build_table, code, heading, next_steps, paragraph, verdict, with_contents

BASELINES = {"auroc": "chance", "balanced_accuracy": "chance", "accuracy": "most frequent class"}
"""Names of the values of `chance`: the same answer for every image."""
TITLES = {"auroc": "AUROC (macro)", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy"}


NEXT_NOTE = "Words in capitals stand for your paths."


def build_few_shot_page(report: Mapping[str, Any]) -> str:
    """Return the page of a classifier, with the curves as SVG and without names of images or groups."""
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
            {BASELINES[name]: report["chance"][name]},
        )
        for name in METRICS
    ]  # fmt: skip
    columns = [f"{unit} a class", "images used"]
    columns += [part for name in METRICS for part in (TITLES[name], "sd")]
    rows = [
        (tick, round(row["images"]), *(part for name in METRICS for part in (row[name]["mean"], row[name]["sd"])))
        for tick, row in zip(ticks, report["shots"], strict=True)
    ]
    rows.append(("same answer for all", 0, *(part for name in METRICS for part in (report["chance"][name], None))))
    parts = [paragraph(opening), heading("Metrics by labels"), *figures, build_table(columns, rows)]
    if report["fewer"]:
        counts = ", ".join(f"{name}: {count}" for name, count in report["fewer"].items())
        parts.append(paragraph(f"Classes with fewer labelled {unit} in train than the largest number: {counts}."))
    settings = {key: report[key] for key in ("backbone", "image_size", "aspect", "seeds", "C", "split")}
    commands = [
        ("dinomed train classify --backbone RUN --data DATA -o ADAPTER", "a classifier on all labels"),
        ("dinomed audit DATA --labels COLUMN --backbone RUN -o labels.html", "labels that are probably wrong"),
    ]
    parts += [*next_steps(commands, NEXT_NOTE), heading("Settings"), _settings(settings)]
    return build_page("How many labels?", [_verdict(report, "auroc"), *with_contents(parts)])


def build_few_mask_page(report: Mapping[str, Any]) -> str:
    """Return the page of a segmentation head, with the curve and the baselines as SVG and without names of images."""
    ticks = [shots_word(row["shots"]) for row in report["shots"]]
    head = report["head"]["name"]
    opening = (
        f"Head {head} on frozen features of {report['backbone']['name']}, fitted on the given number of images with "
        f"masks, a fifth of which choose epoch and threshold. Images are drawn by group ({report['unit']}), with "
        f"{report['seeds']} draws of each number. Split {report['split']}: {report['n']:,} images of "
        f"{report['groups']:,} groups. Bands and intervals: 95%, over draws and groups of test images. Baselines are "
        "not trained; the mean mask is the same for every image."
    )
    lines = {head: [_band(row) for row in report["shots"]]}
    lines |= {row["name"]: [_band(row)] * len(ticks) for row in report["baselines"]}
    figure = bands(lines, ticks, "over images with masks", ("images with masks", "mean Dice"))
    parts = [
        paragraph(opening), heading("Dice by masks"), figure, build_table(MASK_COLUMNS, mask_rows(report))
    ]  # fmt: skip
    settings = {key: report[key] for key in ("backbone", "image_size", "aspect", "seeds", "split", "settings")}
    commands = [
        ("dinomed train segment --backbone RUN --data DATA -o ADAPTER", "a segmenter on all masks"),
        ("dinomed demo segment --adapter ADAPTER --save MASKS", "more masks, by correction of its answers"),
    ]
    parts += [*next_steps(commands, NEXT_NOTE), heading("Settings"), _settings(settings)]
    return build_page("How many masks?", [_verdict(report, "dice"), *with_contents(parts)])


def _verdict(report: Mapping[str, Any], metric: str) -> str:
    """Return the value with the most labels or masks, and what more of them would bring."""
    known = [row for row in report["shots"] if np.isfinite(row[metric]["mean"])]
    if not known:
        return verdict("No number of labels gives a value.")
    title = {"auroc": "Macro AUROC", "dice": "Mean Dice"}[metric]
    of = f"labelled {report['unit']} a class" if metric == "auroc" else "images with masks"
    result = f"{title} {known[-1][metric]['mean']:.3f} with {shots_word(known[-1]['shots'])} {of}."
    return verdict(result, advice(report, metric))


MASK_COLUMNS = ("images with masks", "draws", "Dice", "95% interval", "sd of the draws")


def mask_rows(report: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return a row of `MASK_COLUMNS` for each number of masks and each baseline."""
    rows = [(shots_word(row["shots"]), row["draws"], row["dice"]) for row in report["shots"]]
    rows += [(row["name"], None, row["dice"]) for row in report["baselines"]]
    return [
        (name, draws, dice["mean"], f"{dice['low']:.3f} to {dice['high']:.3f}", dice["sd"] if draws else None)
        for name, draws, dice in rows
    ]


def advice(report: Mapping[str, Any], metric: str = "auroc") -> str:
    """Return a sentence on the gain of the last increase of the number of labels."""
    title = {"auroc": "macro AUROC", "dice": "mean Dice"}[metric]
    rows = [row for row in report["shots"] if np.isfinite(row[metric]["mean"])]
    labels = "masks" if metric == "dice" else "labels"
    if len(rows) < 2:
        return f"A single number of {labels} does not show what more {labels} would bring."
    before, last = rows[-2:]
    gain, spread = last[metric]["mean"] - before[metric]["mean"], max(before[metric]["sd"], last[metric]["sd"])
    step = f"From {shots_word(before['shots'])} to {shots_word(last['shots'])} the {title} changes by {gain:+.3f}"
    if gain > max(spread, 0.005):
        return f"{step}, more than the spread between draws ({spread:.3f}): more {labels} are likely to help."
    return f"{step}, within the spread between draws or too little to matter ({spread:.3f}): look elsewhere for gains."


def shots_word(count: int | None) -> str:
    """Return a number of labels as text; None is all."""
    return "all" if count is None else str(count)


def _band(row: Mapping[str, Any]) -> tuple[float, float, float]:
    return row["dice"]["mean"], row["dice"]["low"], row["dice"]["high"]


def _settings(settings: Mapping[str, Any]) -> str:
    return code("\n".join(f"{key}: {value}" for key, value in settings.items()))
