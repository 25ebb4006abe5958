"""Evaluation of a saved adapter on one split, through the same path as prediction: image in, prediction out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinomed.adapters.bundle import read_record, read_training_hashes
from dinomed.adapters.evaluated import EvaluatedUnits
from dinomed.adapters.evaluation.report import check_columns, split_subgroups, summarize
from dinomed.adapters.fitting.data import select_split
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.predictor import Predictor
from dinomed.adapters.task import Unit, find_task
from dinomed.adapters.training_images import TrainingOverlap
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.log import logger
from dinomed.metrics.bootstrap import RESAMPLES
from dinomed.notice import RESEARCH_USE


@dataclass(frozen=True)
class Evaluation:
    """An evaluation: the report to write, and the predictions for pictures of cases."""

    result: dict[str, Any]
    evaluated: EvaluatedUnits
    predictor: Predictor


def evaluate(folder: str | Path, manifest: Manifest, split: str = "test", **options: Any) -> dict[str, Any]:
    """Return the report of `evaluate_in_full`, which takes the same arguments."""
    return evaluate_in_full(folder, manifest, split, **options).result


def evaluate_in_full(
    folder: str | Path,
    manifest: Manifest,
    split: str = "test",
    *,
    device: str = "cpu",
    backbone: str | Path | None = None,
    allow_seen: bool = False,
    unit: Unit | None = None,
    by: Sequence[str] = (),
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Measure an adapter on the images of `split` that have targets: masks, labels or depth maps.

    Masks are compared at each image's own size. `dinomed.metrics` defines the metrics, and the policy for empty masks
    and absent classes.

    Images of the fit (train and val), and other images of their groups, are left out with a warning: duplicates across
    splits are common and would raise the metrics. On the splits train and val, which consist of them, they stay.

    Args:
        folder: the bundle.
        manifest: images with targets.
        split: train, val or test.
        device: cpu, cuda, cuda:N, mps or auto.
        backbone: path of the backbone, if it was moved since.
        allow_seen: keep such images on other splits too; the metrics are then too high, and the report says so.
        unit: for a classifier, image or group (one prediction for all images of a group); None for the unit of the fit.
        by: columns whose values make subgroups.
        resamples: number of bootstrap resamples of the groups, for the intervals.

    Returns:
        The evaluation. Its report has `task`, `split`, the settings of the task (`threshold` or `classes`), the
        identity of adapter, backbone and images, `seen_in_training` (`images` of the fit, other images
        `of_seen_groups`, and whether they are `left_out`), and the entries of
        `dinomed.adapters.evaluation.report.summarize`. It names no image and no group.

    Raises:
        UsageError: there are no targets, the split is empty, `folder` is no bundle, most images of the split are of the
            fit, or a column of `by` is missing or is no property.
        DinomedError: an image or mask cannot be read.
    """
    record = read_record(folder)
    task = find_task(record.task)
    check_columns(manifest, by)
    chosen = select_split(task.usable_rows(record, manifest), split)
    overlap = read_training_hashes(folder, record).find(chosen, manifest)
    leave_out = bool(overlap) and not allow_seen and split not in ("train", "val")
    if overlap:
        _report_overlap(overlap, len(chosen), f"split {split!r}", folder, leave_out)
    if leave_out:
        chosen = overlap.remove_from(chosen)
    for column in by:
        split_subgroups(chosen, column)  # errors are raised before the predictions, not after
    predictor = load_adapter(folder, device, backbone)
    evaluated = task.evaluate_units(predictor, chosen, split, unit)
    result = {
        "purpose": RESEARCH_USE,
        "adapter": str(folder),
        "task": predictor.task,
        "split": split,
        **task.evaluation_settings(predictor),
        "unit": unit or predictor.unit,
        **summarize(evaluated, by, resamples),
        "seen_in_training": {
            "images": len(overlap.images),
            "of_seen_groups": len(overlap.groups),
            "left_out": leave_out,
        },
        "backbone": {"name": predictor.backbone.name, "fingerprint": predictor.backbone.fingerprint},
        "image_size": predictor.backbone.preprocessing.image_size,
        "images": chosen.fingerprint,
    }
    return Evaluation(result, evaluated, predictor)


def _report_overlap(overlap: TrainingOverlap, total: int, where: str, folder: str | Path, leave_out: bool) -> None:
    """Warn of images of the fit. Raise a `UsageError` if most would be left out."""
    parts = []
    if overlap.images:
        parts.append(f"{len(overlap.images)} of {total} images of {where} are among them (such as {overlap.images[0]})")
    if overlap.groups:
        parts.append(
            f"{len(overlap.groups)} of {total} are of a group that is among them (such as {overlap.groups[0]})"
        )
    text = f"adapter {folder} has seen these images in training or validation: {', and '.join(parts)}"
    if leave_out and len(overlap) > total / 2:
        raise UsageError(f"{text}; give images that it has not seen, or add --allow-seen (the result will say so)")
    logger.warning(f"{text}; {'they are left out' if leave_out else 'the metrics are too good'}")
