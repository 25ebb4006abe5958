"""`dinomed evaluate`: the metrics of an adapter on one split."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from dinomed.apps.options import Data, Device, Json, Quiet


def evaluate(
    adapter: Annotated[Path, Argument(help="Adapter folder, as `dinomed train` writes it.")],
    data: Data,
    split: Annotated[str, Option("--split", help="Split to evaluate: train, val or test.")] = "test",
    backbone: Annotated[str | None, Option("--backbone", "-b", help="Where its backbone is now, if moved.")] = None,
    allow_seen: Annotated[
        bool, Option("--allow-seen", help="Keep images that it was trained or chosen on; the result says so.")
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure an adapter on images with known answers.

    Segmenters: Dice, IoU, HD95 (px), image by image at the image's own size. Classifiers: accuracy, balanced
    accuracy, AUROC, by class. Of a test split, images that the adapter has seen in training or validation, and
    others of their groups, are left out. For research use only.
    """
    from dinomed.adapters.evaluate import evaluate as run
    from dinomed.apps.output import emit
    from dinomed.datasets.manifest import open_collection

    report = run(adapter, open_collection(data), split, device=device, backbone=backbone, allow_seen=allow_seen)
    emit(report, as_json, None if as_json else _table(report))


def _table(report: dict[str, Any]) -> Any:
    from dinomed.apps.output import build_table
    from dinomed.notice import RESEARCH_USE

    metrics, title = report["metrics"], f"{report['adapter']} on {report['backbone']['name']}, split {report['split']}"
    seen = report["seen_in_training"]
    notes: list[tuple[Any, ...]] = [(RESEARCH_USE, None)]
    if seen["images"] or seen["of_seen_groups"]:
        what = "left out" if seen["left_out"] else "TOO GOOD"
        notes.insert(0, (f"{what}: images seen in training or validation", seen["images"]))
        notes.insert(1, ("and images of groups that were seen there", seen["of_seen_groups"]))
    if report["task"] == "classify":
        rows = [(name, row["n"], row["recall"], row["auroc"]) for name, row in metrics["per_class"].items()]
        rows.append(("mean over classes", metrics["n"], metrics["balanced_accuracy"], metrics["auroc"]))
        rows.append(("accuracy", metrics["n"], metrics["accuracy"], None))
        rows += [(*note, None, None) for note in notes]
        return build_table(("class", "n", "recall", "AUROC"), rows, title=title)
    values = [*metrics.items(), ("threshold", report["threshold"]), *notes]
    return build_table(("", report["split"]), values, title=title)
