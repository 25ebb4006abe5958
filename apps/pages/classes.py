"""Section of a classifier on the page of an evaluation: classes, confusion matrix and curves."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dinomed.adapters.tasks.classify.evaluated import EvaluatedClasses
from dinomed.apps.pages.plots import matrix, square
from dinomed.apps.pages.sections.confusion import cell_name, error_cells
from dinomed.html.page import build_table, heading, paragraph
from dinomed.html.words import format_interval
from dinomed.metrics.calibration import reliability
from dinomed.metrics.ranking import Ranking


def build_class_section(result: Mapping[str, Any], evaluated: EvaluatedClasses) -> list[str]:
    """Return the metrics of each class, the confusion matrix and the curves."""
    metrics = result["metrics"]
    keys = [key for key in ("n", "known", "recall", "specificity", "precision", "auroc", "auprc", "ece")
            if key in next(iter(metrics["per_class"].values()))]  # fmt: skip
    rows = [(name, *(row[key] for key in keys)) for name, row in metrics["per_class"].items()]
    parts = [heading("Classes"), build_table(("class", *keys), rows)]
    if result["operating"]:
        parts.append(
            paragraph("Each class at its threshold, which was chosen on val (largest sensitivity + specificity):")
        )
        rows = [
            (name, row["threshold"], row["sensitivity"], _side(row, "sensitivity"), row["specificity"],
             _side(row, "specificity"), row["precision"])
            for name, row in result["operating"].items()
        ]  # fmt: skip
        columns = ("class", "threshold", "sensitivity", "95% interval", "specificity", "95% interval", "precision")
        parts.append(build_table(columns, rows))
    if "confusion" in metrics:
        links = {cell: cell_name(*cell) for cell in error_cells(metrics["confusion"])}
        parts += [heading("Confusion matrix"), matrix(evaluated.names, metrics["confusion"], links)]
    parts += _prediction_sets(result["prediction_sets"])
    temperature = result["temperature"]
    scaling = "no temperature" if temperature is None else f"temperature {temperature:.2f}, fitted on val"
    return [*parts, heading("Curves"), _roc(evaluated), _precision(evaluated), _reliability(evaluated, scaling)]


def _prediction_sets(sets: Mapping[str, Any] | None) -> list[str]:
    """Return the measured coverage and size of the prediction sets; nothing for an adapter without sets."""
    if sets is None:
        return []
    rows = [("all", sets["groups"], sets["coverage"], _side(sets, "coverage"))]
    rows += [(name, row["groups"], row["coverage"], _side(row, "coverage")) for name, row in sets["per_class"].items()]
    sizes = ", ".join(f"{size}: {count:,}" for size, count in sets["sizes"].items())
    source = (
        f"those of val, of which {sets['groups_of_val']:,} groups gave the limit {sets['limit']:.4g}."
        if sets["limit"] is not None
        else f"those of the folds, of which {sets['groups_of_val']:,} groups were predicted out of fold (CV+)."
    )
    note = (
        "Means over groups. The coverage holds for all classes together, not for each one. It is expected only on "
        f"images like {source}"
    )
    return [
        heading("Prediction sets"),
        paragraph(describe_sets(sets)),
        build_table(("class", "groups", "coverage", "95% interval"), rows),
        paragraph(f"Images by the number of classes in their set: {sizes}."),
        f'<p class="soft">{note}</p>',
    ]


def describe_sets(sets: Mapping[str, Any]) -> str:
    """Return a line about the coverage and the mean size of prediction sets, from the entry of a report."""
    coverage, size = (
        f"{sets[name]:.3f} ({_side(sets, name)})".replace("\N{NO-BREAK SPACE}", " ")
        for name in ("coverage", "mean_size")
    )
    full = "" if sets["problem"] is None else f"; they hold all classes: {sets['problem']}"
    return f"prediction sets for a coverage of {sets['target']:g}: measured {coverage}, mean size {size}{full}"


def _side(row: Mapping[str, Any], name: str) -> str:
    return format_interval(row[f"{name}_low"], row[f"{name}_high"])


def _rankings(evaluated: EvaluatedClasses) -> dict[str, Ranking]:
    rankings = {}
    for index, name in enumerate(evaluated.names):
        rows, positive = evaluated.positives(index)
        scores = evaluated.wide[rows, index]
        if 0 < positive.sum() < len(positive) and np.isfinite(scores).all():
            rankings[name] = Ranking(positive, scores)
    return rankings


def _roc(evaluated: EvaluatedClasses) -> str:
    lines = {name: list(zip(*ranking.roc(), strict=True)) for name, ranking in _rankings(evaluated).items()}
    return square(lines, "ROC, each class against the rest", ("1 - specificity", "sensitivity"), diagonal=True)


def _precision(evaluated: EvaluatedClasses) -> str:
    lines = {
        name: list(zip(*ranking.precision_recall(), strict=True)) for name, ranking in _rankings(evaluated).items()
    }
    return square(lines, "Precision and recall, each class against the rest", ("recall", "precision"))


def _reliability(evaluated: EvaluatedClasses, scaling: str) -> str:
    if evaluated.answer.multilabel:
        known = ~np.isnan(evaluated.targets) & ~np.isnan(evaluated.wide)
        name, confidence, correct = "all labels", evaluated.wide[known], evaluated.targets[known] == 1
    else:
        top = np.nan_to_num(evaluated.wide, nan=-1.0)
        name, confidence, correct = "most probable class", top.max(axis=1), top.argmax(axis=1) == evaluated.targets
    points = [(point["confidence"], point["accuracy"]) for point in reliability(confidence, correct)]
    caption = f"Reliability: observed frequency against predicted probability ({scaling})"
    return square({name: points}, caption, ("predicted probability", "observed frequency"), diagonal=True, dots=True)
