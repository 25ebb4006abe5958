"""`dinomed evaluate`: metrics of an adapter on one split."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from dinomed.apps.options import Data, Device, Json, MaskText, Overwrite, Quiet, output_place


def evaluate(
    adapter: Annotated[
        list[Path], Argument(help="Adapter folder, as `dinomed train` writes it; several are compared with the first.")
    ],
    data: Data,
    split: Annotated[str, Option("--split", help="Split to evaluate: train, val or test.")] = "test",
    backbone: Annotated[str | None, Option("--backbone", "-b", help="Path of its backbone, if it was moved.")] = None,
    allow_seen: Annotated[
        bool, Option("--allow-seen", help="Keep images of its training and validation; the result states it.")
    ] = False,
    unit: Annotated[
        str | None,
        Option("--unit", help="For a classifier: image, or group for one prediction for all images of a group."),
    ] = None,
    by: Annotated[
        str | None,
        Option(
            "--by",
            help="Subgroups: columns (sex,site), bands of numbers (age:10), or pairs ('sex*age:20', in quotes).",
        ),
    ] = None,
    resamples: Annotated[
        int, Option("--resamples", help="Number of bootstrap resamples of the groups, for the intervals.", min=10)
    ] = 1000,
    out: Annotated[
        Path | None,
        Option(
            "--output", "-o", help="Folder for report.html and metrics.json.", show_default=False, callback=output_place
        ),
    ] = None,
    names: Annotated[bool, Option("--names", help="Show the paths of images in the report.")] = False,
    mask_text: MaskText = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate an adapter on images with targets.

    Segmenters: Dice, IoU, surface Dice and HD95 (px), for each image at its own size, and metrics by lesion; of
    slices (`dinomed slices`) also Dice and HD95 in mm by volume, and of frames (`scan --videos`) by video.
    Classifiers: AUROC, AUPRC, accuracy and calibration, metrics by class, and metrics at the thresholds chosen on val.
    Several adapters (A B C) are measured on the images that none of them leaves out, with intervals of their paired
    differences from the first. Intervals are bootstrap intervals over groups. With --by, the worst and the best
    subgroup and their gap are named. On a test split, images of training and validation, and other images of their
    groups, are left out. With -o, a page with curves, subgroups and pictures of the best and worst cases is written; it
    names no image without --names. For research use only.
    """
    arguments = locals()
    from dinomed.apps.api.heads import evaluate as evaluate_adapter
    from dinomed.apps.ending import demo_of, print_end
    from dinomed.apps.output import api_arguments, emit

    columns = [name.strip() for name in (by or "").split(",") if name.strip()]
    shown = adapter if len(adapter) > 1 else adapter[0]
    report = evaluate_adapter(**api_arguments(arguments | {"adapter": shown, "by": columns}))
    for table in [None] if as_json else _comparison(report) if "runs" in report else _tables(report):
        emit(report, as_json, table)
    print_end([out, report.get("report")], lambda: demo_of(adapter[0], backbone), as_json=as_json)


def _comparison(report: dict[str, Any]) -> list[Any]:
    """Return the metrics of several adapters with their differences from the first one."""
    from dinomed.apps.output import build_table
    from dinomed.apps.pages.sections.runs import describe_runs, difference_rows
    from dinomed.notice import RESEARCH_USE

    table = build_table(*difference_rows(report), title=describe_runs(report))
    table.caption = "\n".join([*([report["report"]] if "report" in report else []), RESEARCH_USE])
    return [table]


def _tables(report: dict[str, Any]) -> list[Any]:
    """Return the metrics with their intervals and, for a task with classes, the metrics by class."""
    from dinomed.adapters.task import find_task
    from dinomed.adapters.tasks.areas import area_tables
    from dinomed.adapters.tasks.volume_metrics import case_tables
    from dinomed.apps.output import build_table
    from dinomed.html.words import format_value

    metrics, title = report["metrics"], f"{report['adapter']} on {report['backbone']['name']}, split {report['split']}"
    rows: list[tuple[Any, ...]] = [
        (name, row["value"], f"{format_value(float(row['low']))} to {format_value(float(row['high']))}")
        for name, row in report["intervals"].items()
    ]
    classes = find_task(report["task"]).class_table(metrics)
    if classes is None:
        shown = (*report["intervals"], "lesions", "per_class")
        rows += [(key, value, "") for key, value in metrics.items() if key not in shown]
        rows.append(("threshold", report.get("threshold"), ""))
    tables = [build_table(("", report["split"], "95% interval"), rows, title=title)]
    if classes is not None:
        tables.append(build_table(*classes))
    parts = [*case_tables(report), *area_tables(report)]
    tables += [build_table(part.columns, part.rows, title=f"{part.title}. {part.note}") for part in parts]
    tables += [*_abstention_tables(report), *_gap_tables(report)]
    tables[-1].caption = "\n".join(_notes(report))
    return tables


def _abstention_tables(report: dict[str, Any]) -> list[Any]:
    """Return a table of the risk-coverage curves; none for a task without a confidence."""
    from dinomed.apps.output import build_table
    from dinomed.apps.pages.abstention import curve_table, describe_curves

    if report["abstention"] is None:
        return []
    return [build_table(*curve_table(report), title="\n".join(describe_curves(report)))]


def _gap_tables(report: dict[str, Any]) -> list[Any]:
    """Return for each entry of ``--by`` a table of the gaps between the worst and the best subgroup."""
    from dinomed.apps.output import build_table
    from dinomed.apps.pages.subgroups import GAP_COLUMNS, gap_rows, largest_odds_gap

    tables = []
    for entry, comparison in report.get("gaps", {}).items():
        rows = gap_rows(comparison, report["task"])
        odds = largest_odds_gap(comparison)
        rows += [odds] if odds else []
        tables += [build_table(GAP_COLUMNS, rows, title=f"Gaps by {entry}")] if rows else []
    return tables


def _notes(report: dict[str, Any]) -> list[str]:
    from dinomed.apps.pages.classes import describe_sets
    from dinomed.apps.pages.evaluation import describe_unlike
    from dinomed.apps.pages.subgroups import too_small_lines
    from dinomed.notice import RESEARCH_USE

    seen = report["seen_in_training"]
    notes = []
    if seen["images"] or seen["of_seen_groups"]:
        what = "left out" if seen["left_out"] else "METRICS TOO HIGH"
        notes.append(
            f"{what}: {seen['images']} images seen in training or validation, and {seen['of_seen_groups']} images of "
            "groups that were seen there"
        )
    if report.get("prediction_sets"):
        notes.append(describe_sets(report["prediction_sets"]))
    for entry, comparison in report.get("gaps", {}).items():
        notes += [f"by {entry}: {line}" for line in too_small_lines(comparison, report["subgroups"][entry])]
    notes.append(describe_unlike(report["unlike_training"]))
    return [*notes, *([report["report"]] if "report" in report else []), RESEARCH_USE]
