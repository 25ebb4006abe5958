"""Evaluation of a saved adapter on one split, with the same predictor as `dinomed predict`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.adapters.evaluated import LIKENESS, EvaluatedUnits
from dinomed.adapters.evaluation.report import summarize
from dinomed.adapters.evaluation.subgroups import check_columns, check_subgroups
from dinomed.adapters.fitting.data import select_split
from dinomed.adapters.inference.loader import load_adapter, read_adapter_record, read_seen_hashes
from dinomed.adapters.predictor import Predictor
from dinomed.adapters.task import Unit, find_task
from dinomed.adapters.training_images import TrainingOverlap, usable_check
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.log import logger
from dinomed.metrics.bootstrap import RESAMPLES
from dinomed.notice import RESEARCH_USE


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation: the report, the predictions with their targets, and the predictor."""

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
    by: Sequence[str] = (),
    resamples: int = RESAMPLES,
    **options: Any,
) -> Evaluation:
    """Measure an adapter on the images of `split` that have targets: masks, labels or depth maps.

    Args:
        folder, manifest, split, by, options: as for `predict_split`.
        resamples: number of bootstrap resamples of the groups, for the intervals.

    Returns:
        The evaluation. Its report has the entries of `predict_split` and those of
        `dinomed.adapters.evaluation.report.summarize`.
    """
    evaluation = predict_split(folder, manifest, split, by=by, **options)
    return replace(evaluation, result=evaluation.result | summarize(evaluation.evaluated, by, resamples))


def predict_split(
    folder: str | Path,
    manifest: Manifest,
    split: str = "test",
    *,
    device: str = "cpu",
    backbone: str | Path | None = None,
    allow_seen: bool = False,
    unit: Unit | None = None,
    by: Sequence[str] = (),
) -> Evaluation:
    """Predict the images of `split` that have targets, and compare the predictions with them, without metrics.

    Masks are compared at the size of each image. `dinomed.metrics` defines the metrics, and the policy for empty masks
    and absent classes.

    Images that the fit used (train and val), and other images of their groups, are left out with a warning: duplicates
    across splits are common and would raise the metrics. If `split` is train or val, they are kept.

    Args:
        folder: the bundle.
        manifest: images with targets.
        split: train, val or test.
        device: cpu, cuda, cuda:N, mps or auto.
        backbone: path of the backbone, if it was moved after the fit.
        allow_seen: keep these images in other splits too; the metrics are then too high, and the report states it.
        unit: for a classifier, image or group (one prediction for all images of a group); None for the unit of the fit.
        by: columns that define subgroups, such as sex, age:10 (bands of 10) or sex*age:20 (pairs); they are checked
            before the predictions are computed.

    Returns:
        The evaluation. Its report has `task`, `split`, the settings of the task (`threshold` or `classes`), the
        identity of adapter, backbone and images, `seen_in_training` (number of `images` of the fit, number of other
        images `of_seen_groups`, and whether they are `left_out`) and `unlike_training` (`count_unlike`). It contains no
        names of images or groups.

    Raises:
        UsageError: there are no targets, the split is empty, `folder` is not a bundle, more than half of the images
            would be left out, or a column of `by` is missing or cannot define subgroups.
        DinomedError: an image or mask cannot be read.
    """
    record = read_adapter_record(folder)
    task = find_task(record.task)
    check_columns(manifest, by)
    chosen = select_split(task.usable_rows(record, manifest), split)
    overlap = read_seen_hashes(folder).find(chosen, manifest)
    leave_out = bool(overlap) and not allow_seen and split not in ("train", "val")
    if overlap:
        _report_overlap(overlap, len(chosen), f"split {split!r}", folder, leave_out)
    if leave_out:
        chosen = overlap.remove_from(chosen)
    check_subgroups(chosen, by, split)
    predictor = load_adapter(folder, device, backbone)
    predictor.familiarity.clear()
    evaluated = task.evaluate_units(predictor, chosen, split, unit)
    check, _ = usable_check(predictor.check)
    if check is None:
        evaluated.confidences.pop(LIKENESS, None)
    elif len(predictor.familiarity) == len(evaluated.groups) and LIKENESS not in evaluated.confidences:
        evaluated.confidences[LIKENESS] = np.array([-image.distance for image in predictor.familiarity])
    result = {
        "purpose": RESEARCH_USE,
        "adapter": str(folder),
        "task": predictor.task,
        "split": split,
        **task.evaluation_settings(predictor),
        "unit": unit or predictor.unit,
        "seen_in_training": {
            "images": len(overlap.images),
            "of_seen_groups": len(overlap.groups),
            "left_out": leave_out,
        },
        "unlike_training": count_unlike(predictor),
        **predictor.backbone.describe(),
        "images": chosen.fingerprint,
    }
    return Evaluation(result, evaluated, predictor)


def count_unlike(predictor: Predictor) -> dict[str, Any]:
    """Return `images`, the number of checked images that are unlike the training images, `of`, the number of checked
    images, and `problem`, the reason why there is no check, or None."""
    _, problem = usable_check(predictor.check)
    checked = predictor.familiarity
    if problem is None and not checked:
        problem = f"the evaluation of a {find_task(predictor.task).title} does not check images"
    return {"images": sum(image.unlike for image in checked), "of": len(checked), "problem": problem}


def _report_overlap(overlap: TrainingOverlap, total: int, where: str, folder: str | Path, leave_out: bool) -> None:
    """Warn about images that the fit used. Raise a `UsageError` if more than half would be left out."""
    parts = []
    if overlap.images:
        parts.append(f"{len(overlap.images)} of {total} images of {where} are in it (such as {overlap.images[0]})")
    if overlap.groups:
        parts.append(f"{len(overlap.groups)} of {total} images are from its groups (such as {overlap.groups[0]})")
    text = f"the data overlaps the training and validation data of adapter {folder}: {', and '.join(parts)}"
    if leave_out and len(overlap) > total / 2:
        raise UsageError(f"{text}; evaluate other images, or add `allow_seen=True` (the report then states it)")
    logger.warning(f"{text}; {'they are left out' if leave_out else 'the metrics are too high'}")
