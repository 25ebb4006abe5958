"""HTML page of an evaluation: metrics with intervals, curves, subgroups, and pictures of the best and worst cases.

The page has no scripts and loads no other files. Paths of images are shown only with `names`.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np

from dinomed.adapters.evaluated import EvaluatedUnits
from dinomed.adapters.evaluation.evaluate import Evaluation
from dinomed.adapters.evaluation.report import extreme_cases
from dinomed.adapters.task import find_task
from dinomed.adapters.tasks.classify.evaluated import EvaluatedClasses
from dinomed.apps.pages.abstention import build_abstention_section
from dinomed.apps.pages.overlay import draw_mask, line_width_px, outline
from dinomed.apps.pages.sections.confusion import build_error_cases
from dinomed.apps.pages.sections.summary import build_next_steps, build_verdict
from dinomed.apps.pages.sections.training import build_training_section, read_fit_logs
from dinomed.apps.pages.subgroups import build_subgroup_section
from dinomed.burned_in_text.mask import TextMask
from dinomed.datasets.manifest import Manifest
from dinomed.html.album import Album
from dinomed.html.page import build_page, build_table, code, heading, paragraph, with_contents
from dinomed.html.words import format_interval

CASES = 6
REFERENCE_COLOUR = (255, 255, 255)


def build_evaluation_page(
    evaluation: Evaluation, collection: Manifest, *, names: bool = False, mask: TextMask | None = None
) -> str:
    """Return the page.

    Args:
        evaluation: from `dinomed.adapters.evaluation.evaluate.evaluate_in_full`.
        collection: the manifest that was passed to the evaluation.
        names: show the paths of images.
        mask: masks burned-in text in the images.
    """
    result = evaluation.result
    line = describe_unlike(result["unlike_training"])
    unlike = paragraph(f"{line[:1].upper()}{line[1:]}.")
    parts = [paragraph(_opening(result)), *_warnings(result), unlike, heading("Metrics"), *_headline(result)]
    parts += _section(result, evaluation.evaluated)
    parts += build_abstention_section(result, evaluation.evaluated)
    parts += build_subgroup_section(result)
    album = Album(names=names, mask=mask)
    parts += _cases(evaluation, collection, album)
    if "confusion" in result["metrics"] and isinstance(evaluation.evaluated, EvaluatedClasses):
        parts += build_error_cases(evaluation.evaluated, result["metrics"]["confusion"], collection, album)
    parts += album.note()
    parts += build_training_section(read_fit_logs(Path(result["adapter"])))
    parts += build_next_steps(result)
    shown = ("backbone", "image_size", "aspect", "images", "bootstrap", "seen_in_training")
    lines = [f"{key}: {result[key]}" for key in shown]
    parts += [heading("Settings"), code("\n".join(lines))]
    return build_page("Evaluation", [build_verdict(result), *with_contents(parts)])


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


def describe_unlike(unlike: Mapping[str, Any]) -> str:
    """Return a line about the images that are unlike the training images, from the entry of a report."""
    if unlike["problem"] is not None:
        return f"images unlike the training images: not checked ({unlike['problem']})"
    return f"{unlike['images']:,} of {unlike['of']:,} images are unlike the training images"


def _headline(result: Mapping[str, Any]) -> list[str]:
    boot = result["bootstrap"]
    titles = find_task(result["task"]).metric_titles
    rows = [
        (titles.get(name, name), row["value"], format_interval(row["low"], row["high"]))
        for name, row in result["intervals"].items()
    ]
    note = (
        f"Intervals: {boot['level']:.0%}, percentiles of {boot['resamples']:,} resamples of {_over(result)} (cluster "
        "bootstrap). A dash means that a value is undefined; such a value is left out of means and never counts as 0."
    )
    return [build_table(("metric", "value", "95% interval"), rows), f'<p class="soft">{note}</p>']


def _section(result: Mapping[str, Any], evaluated: EvaluatedUnits) -> list[str]:
    """Return the section that the task defines: drawn by a function of its own, or tables."""
    task = find_task(result["task"])
    if task.page_section:
        section: list[str] = resolve_name(task.page_section)(result, evaluated)
        return section
    parts = []
    for table in task.report_tables(result):
        note = [paragraph(table.note)] if table.note else []
        parts += [heading(table.title), *note, build_table(table.columns, table.rows)]
    return parts


def _cases(evaluation: Evaluation, collection: Manifest, album: Album) -> list[str]:
    """Return pictures of the worst and the best cases, with predicted and reference masks where the task has masks."""
    place = {image: row for row, image in enumerate(collection.column("image"))}
    images = evaluation.evaluated.manifest.column("image")
    best, worst = extreme_cases(evaluation.evaluated, CASES)
    task = find_task(evaluation.predictor.task)
    parts = []
    for title, units in (("Worst cases", worst), ("Best cases", best)):
        parts.append(heading(title))
        for unit in units:
            row = place[images[unit]]
            caption, draw = (
                evaluation.evaluated.describe_unit(unit, task.metric_titles),
                partial(_draw_masks, evaluation, collection, row),
            )
            parts.append(album.picture(collection, row, caption, draw=draw, width_px=200))
    return [*parts, f'<p class="soft">{task.case_note}</p>'] if task.case_note else parts


def _draw_masks(evaluation: Evaluation, collection: Manifest, row: int, image: np.ndarray) -> np.ndarray:
    """Return the image with the predicted mask in colour and the reference outline in white, if there are masks."""
    masks = find_task(evaluation.predictor.task).masks_of_case(evaluation.predictor, collection, row)
    if masks is None:
        return image
    predicted, reference = masks
    drawn = draw_mask(image, predicted, fill=0.12)
    drawn[outline(reference, max(1, line_width_px(image.shape) // 2))] = REFERENCE_COLOUR
    return drawn
