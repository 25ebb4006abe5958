"""HTML page of an evaluation: metrics with intervals, curves, subgroups, and pictures of the best and worst cases.

The page has no scripts and loads no other files. Paths of images are shown only with `names`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from dinomed.adapters.evaluation.evaluate import Evaluation
from dinomed.adapters.evaluation.report import extreme_cases
from dinomed.adapters.task import find_task
from dinomed.adapters.tasks.classify.evaluated import EvaluatedClasses
from dinomed.apps.pages.overlay import draw_mask, line_width_px, outline
from dinomed.apps.pages.plots import matrix, square
from dinomed.datasets.manifest import Manifest
from dinomed.html.album import Album
from dinomed.html.page import build_page, build_table, code, heading, paragraph
from dinomed.html.words import format_value
from dinomed.metrics.calibration import reliability
from dinomed.metrics.ranking import Ranking

CASES = 6
REFERENCE_COLOUR = (255, 255, 255)
TITLES = {
    "auroc": "AUROC (mean over classes, each against the rest)",
    "auprc": "AUPRC (mean over classes)",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "ece": "calibration error (ECE, 15 bins)",
    "brier": "Brier score",
    "nll": "log loss, nats",
    "dice": "Dice",
    "iou": "IoU",
    "surface_dice": "surface Dice (tolerance 0.5% of the diagonal)",
    "hd95_px": "HD95, px",
    "rmse": "RMSE",
    "abs_rel": "AbsRel",
}


def build_evaluation_page(evaluation: Evaluation, collection: Manifest, *, names: bool = False) -> str:
    """Return the page.

    Args:
        evaluation: from `dinomed.adapters.evaluation.evaluate.evaluate_in_full`.
        collection: the manifest that was passed to the evaluation.
        names: show the paths of images.
    """
    result = evaluation.result
    parts = [paragraph(_opening(result)), *_warnings(result), *_headline(result)]
    if result["task"] in SECTIONS:
        parts += SECTIONS[result["task"]](result, evaluation.evaluated)
    parts += _subgroups(result)
    parts += _cases(evaluation, collection, Album(names=names))
    settings = {key: result[key] for key in ("backbone", "image_size", "images", "bootstrap", "seen_in_training")}
    lines = [f"{key}: {value}" for key, value in settings.items()]
    return build_page("Evaluation", [*parts, heading("Settings"), code("\n".join(lines))])


def _opening(result: Mapping[str, Any]) -> str:
    what = find_task(result["task"]).title
    unit = "groups" if result["unit"] == "group" else "images"
    return (
        f"A {what} on backbone {result['backbone']['name']}, split {result['split']}: "
        f"{result['metrics']['n']:,} {unit} of {result['bootstrap']['groups']:,} {_over(result)}."
    )


def _over(result: Mapping[str, Any]) -> str:
    return (
        "patients, lesions or videos"
        if result["bootstrap"]["over"] == "groups"
        else "images, assumed to be independent"
    )


def _warnings(result: Mapping[str, Any]) -> list[str]:
    seen = result["seen_in_training"]
    count = seen["images"] + seen["of_seen_groups"]
    if not count:
        return []
    if seen["left_out"]:
        return [paragraph(f"{count:,} images were left out: the fit used them, or other images of their groups.")]
    return [paragraph(f"METRICS TOO HIGH: the fit used {count:,} of these images, or other images of their groups.")]


def _headline(result: Mapping[str, Any]) -> list[str]:
    boot = result["bootstrap"]
    rows = [(TITLES.get(name, name), row["value"], _interval(row)) for name, row in result["intervals"].items()]
    note = (
        f"Intervals: {boot['level']:.0%}, percentiles of {boot['resamples']:,} resamples of {_over(result)} (cluster "
        "bootstrap). A dash means that a value is undefined; such a value is left out of means and never counts as 0."
    )
    return [build_table(("metric", "value", "95% interval"), rows), f'<p class="soft">{note}</p>']


def _interval(row: Mapping[str, Any]) -> str:
    low, high = format_value(float(row["low"])), format_value(float(row["high"]))
    return low if low == high == format_value(None) else f"{low}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{high}"


def _classes(result: Mapping[str, Any], evaluated: EvaluatedClasses) -> list[str]:
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
    return _interval({"low": row[f"{name}_low"], "high": row[f"{name}_high"]})


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


def _lesions(result: Mapping[str, Any], evaluated: Any) -> list[str]:
    lesions = result["metrics"]["lesions"]
    by_class = lesions if isinstance(next(iter(lesions.values())), dict) else {"lesion": lesions}
    columns = ("lesions", "found", "missed", "false", "sensitivity", "precision", "false_per_image", "clear_images",
               "clear_with_false")  # fmt: skip
    rows = [(name, *(row[key] for key in columns)) for name, row in by_class.items()]
    titles = ("", "lesions", "detected", "missed", "false positives", "sensitivity", "precision",
              "false positives per image", "images without a lesion", "of these, with a false positive")  # fmt: skip
    note = paragraph(
        "A lesion (connected area) counts as detected if a tenth of it is covered; a predicted area that touches no "
        "lesion is a false positive."
    )
    return [heading("Lesions"), note, build_table(titles, rows)]


def _subgroups(result: Mapping[str, Any]) -> list[str]:
    parts = []
    for column, rows in result.get("subgroups", {}).items():
        first = list(result["intervals"])[:2]
        table = []
        for row in rows:
            values = [part for name in first for part in (row["intervals"][name]["value"],
                                                          _interval(row["intervals"][name]))]  # fmt: skip
            table.append(
                (row["value"], row["n"], row["groups"], *values, "few groups: uncertain" if row["few"] else "")
            )
        titles = [part for name in first for part in (TITLES.get(name, name).partition(" (")[0], "95% interval")]
        parts += [heading(f"By {column}"), build_table((column, "n", "groups", *titles, ""), table)]
    return parts


def _cases(evaluation: Evaluation, collection: Manifest, album: Album) -> list[str]:
    """Return pictures of the worst and the best cases, with predicted and reference masks where the task has masks."""
    place = {image: row for row, image in enumerate(collection.column("image"))}
    images = evaluation.evaluated.manifest.column("image")
    best, worst = extreme_cases(evaluation.evaluated, CASES)
    parts = []
    for title, units in (("Worst cases", worst), ("Best cases", best)):
        parts.append(heading(title))
        for unit in units:
            row = place[images[unit]]
            caption, draw = (
                evaluation.evaluated.describe_unit(unit, TITLES),
                partial(_draw_masks, evaluation, collection, row),
            )
            parts.append(album.picture(collection, row, caption, draw=draw, width_px=200))
    note = find_task(evaluation.predictor.task).case_note
    return [*parts, f'<p class="soft">{note}</p>'] if note else parts


def _draw_masks(evaluation: Evaluation, collection: Manifest, row: int, image: np.ndarray) -> np.ndarray:
    """Return the image with the predicted mask in colour and the reference outline in white, if there are masks."""
    masks = find_task(evaluation.predictor.task).masks_of_case(evaluation.predictor, collection, row, image)
    if masks is None:
        return image
    predicted, reference = masks
    drawn = draw_mask(image, predicted, fill=0.12)
    drawn[outline(reference, max(1, line_width_px(image.shape) // 2))] = REFERENCE_COLOUR
    return drawn


SECTIONS: dict[str, Callable[[Mapping[str, Any], Any], list[str]]] = {"classify": _classes, "segment": _lesions}
"""Task -> section that only the page of this task has."""
