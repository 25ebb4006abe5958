"""Section of a classifier on the page of an evaluation: classes, confusion matrix and curves."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dinomed.adapters.tasks.classify.evaluated import EvaluatedClasses
from dinomed.apps.pages.plots import matrix, square
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
        parts += [heading("Confusion matrix"), matrix(evaluated.names, metrics["confusion"])]
    temperature = result["temperature"]
    scaling = "no temperature" if temperature is None else f"temperature {temperature:.2f}, fitted on val"
    return [*parts, heading("Curves"), _roc(evaluated), _precision(evaluated), _reliability(evaluated, scaling)]


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
