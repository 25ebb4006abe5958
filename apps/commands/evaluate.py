"""`dinomed evaluate`: metrics of an adapter on one split."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from dinomed.apps.options import Data, Device, Json, Overwrite, Quiet


def evaluate(
    adapter: Annotated[Path, Argument(help="Adapter folder, as `dinomed train` writes it.")],
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
    by: Annotated[str | None, Option("--by", help="Columns whose values are subgroups: sex,localization.")] = None,
    resamples: Annotated[
        int, Option("--resamples", help="Number of bootstrap resamples of the groups, for the intervals.", min=10)
    ] = 1000,
    output: Annotated[
        Path | None, Option("--output", "-o", help="Folder for report.html and metrics.json.", show_default=False)
    ] = None,
    names: Annotated[bool, Option("--names", help="Show the paths of images in the report.")] = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate an adapter on images with targets.

    Segmenters: Dice, IoU, surface Dice and HD95 (px), for each image at its own size, and metrics by lesion.
    Classifiers: AUROC, AUPRC, accuracy and calibration, metrics by class, and metrics at the thresholds chosen on val.
    Intervals are bootstrap intervals over groups. On a test split, images of training and validation, and other images
    of their groups, are left out. With -o, a page with curves, subgroups and pictures of the best and worst cases is
    written; it names no image without --names. For research use only.
    """
    from dinomed.apps.api.heads import evaluate as evaluate_adapter
    from dinomed.apps.output import emit

    report = evaluate_adapter(
        adapter, data, split=split, out=output, backbone=backbone, allow_seen=allow_seen, unit=unit,  # type: ignore[arg-type]
        by=[name.strip() for name in by.split(",") if name.strip()] if by else (), resamples=resamples, names=names,
        overwrite=overwrite, device=device,
    )  # fmt: skip
    emit(report, as_json, None if as_json else _table(report))


def _table(report: dict[str, Any]) -> Any:
    from dinomed.adapters.task import find_task
    from dinomed.apps.output import build_table
    from dinomed.notice import RESEARCH_USE

    metrics, title = report["metrics"], f"{report['adapter']} on {report['backbone']['name']}, split {report['split']}"
    seen = report["seen_in_training"]
    notes: list[tuple[Any, ...]] = [(RESEARCH_USE, None)]
    if seen["images"] or seen["of_seen_groups"]:
        what = "left out" if seen["left_out"] else "METRICS TOO HIGH"
        notes.insert(0, (f"{what}: images seen in training or validation", seen["images"]))
        notes.insert(1, ("and images of groups that were seen there", seen["of_seen_groups"]))
    if "report" in report:
        notes.append((report["report"], None))
    table = find_task(report["task"]).class_table(metrics)
    if table is not None:
        columns, classes = table
        blanks = [None] * (len(columns) - 2)
        rows = [(*row, "") for row in classes] + _intervals(report, len(columns) - 1)
        rows += [(note, value, *blanks, "") for note, value in notes]
        return build_table((*columns, "95% interval"), rows, title=title)
    skipped = (*report["intervals"], "lesions", "per_class")
    plain = [(key, value, "") for key, value in metrics.items() if key not in skipped]
    values = [*_intervals(report, 1), *plain, ("threshold", report.get("threshold"), "")]
    return build_table(("", report["split"], "95% interval"), [*values, *((*note, "") for note in notes)], title=title)


def _intervals(report: dict[str, Any], place: int) -> list[tuple[Any, ...]]:
    """Return a row for each metric, with its value in column `place` and its interval in the last."""
    from dinomed.html.words import format_value

    return [
        (
            name,
            *[None] * (place - 1),
            row["value"],
            f"{format_value(float(row['low']))} to {format_value(float(row['high']))}",
        )
        for name, row in report["intervals"].items()
    ]
