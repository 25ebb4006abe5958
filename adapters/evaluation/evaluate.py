"""Metrics of a saved adapter on one split, through the same path as prediction: image in, prediction out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinomed.adapters.bundle import read_record, read_training_hashes
from dinomed.adapters.evaluation.report import Judged, check_columns, split_subgroups, summarize
from dinomed.adapters.fitting.data import select_split
from dinomed.adapters.inference.loader import (
    AnyPredictor,
    ClassifyPredictor,
    DepthPredictor,
    SegmentPredictor,
    load_adapter,
)
from dinomed.adapters.record import AdapterRecord
from dinomed.adapters.tasks.classify.answer import answer_from
from dinomed.adapters.tasks.classify.evaluate import Unit, judge_classifier
from dinomed.adapters.tasks.classify.labels import LabelColumns
from dinomed.adapters.tasks.depth.maps import source_from
from dinomed.adapters.tasks.segment.mask_schema import mask_schema_from
from dinomed.adapters.training_images import TrainingOverlap
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.log import logger
from dinomed.metrics.bootstrap import RESAMPLES
from dinomed.notice import RESEARCH_USE


@dataclass(frozen=True)
class Evaluation:
    """`result` is what there is to write; `judged` and `predictor` are for pictures."""

    result: dict[str, Any]
    judged: Judged
    predictor: AnyPredictor


def evaluate(folder: str | Path, manifest: Manifest, split: str = "test", **options: Any) -> dict[str, Any]:
    """The result of `evaluate_in_full`, with the same arguments."""
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
    """Metrics over the images of `split` that have a mask (segmenter), a label (classifier) or a depth map.

    Masks are compared at each image's own size. See `dinomed.metrics` for what the values mean and for the policy on
    empty masks and absent classes.

    Images that the adapter has seen in training or validation, and others of their groups, are left out with a
    warning: a duplicate across the splits is common, and must not flatter. On the splits train and val, which are all
    seen, they stay.

    Args:
        allow_seen: leave none out on other splits either. Metrics are then too good, and the result says so.
        unit: of a classifier, image or group: one answer for all images of a group. By default what it was made for.
        by: columns whose values make subgroups.
        resamples: of the groups, for the intervals.

    Returns:
        Its result has `task`, `split`, `threshold` or `classes`, what identifies adapter, backbone and images,
        `seen_in_training`: how many `images` were, how many others are `of_seen_groups`, and whether they are
        `left_out`; and what `dinomed.adapters.evaluation.report.summarize` gives. It names no image and no group.

    Raises:
        UsageError: no labels or masks, an empty split, no adapter in `folder`, a split most of which it has seen, or a
            column of `by` that is not there or is no property.
        DinomedError: an image or mask cannot be read.
    """
    record = read_record(folder)
    check_columns(manifest, by)
    chosen = select_split(_usable(record, manifest), split)
    seen = read_training_hashes(folder, record).find(chosen, manifest)
    leave_out = bool(seen) and not allow_seen and split not in ("train", "val")
    if seen:
        _tell_seen(seen, len(chosen), f"split {split!r}", folder, leave_out)
    if leave_out:
        chosen = seen.remove_from(chosen)
    for column in by:
        split_subgroups(chosen, column)  # refused before the work, not after it
    predictor = load_adapter(folder, device, backbone)
    judged = _judge(predictor, chosen, split, unit)
    result: dict[str, Any] = {"purpose": RESEARCH_USE, "adapter": str(folder), "task": predictor.task, "split": split}
    result |= {"threshold": predictor.threshold} if isinstance(predictor, SegmentPredictor) else {}
    result |= {"classes": predictor.classes} if isinstance(predictor, ClassifyPredictor) else {}
    result |= {"unit": unit or (predictor.answer.unit if isinstance(predictor, ClassifyPredictor) else "image")}
    result |= summarize(judged, by, resamples) | {
        "seen_in_training": {
            "images": len(seen.images),
            "of_seen_groups": len(seen.groups),
            "left_out": leave_out,
        },
        "backbone": {"name": predictor.backbone.name, "fingerprint": predictor.backbone.fingerprint},
        "image_size": predictor.backbone.preprocessing.image_size,
        "images": chosen.fingerprint,
    }
    return Evaluation(result, judged, predictor)


def _usable(record: AdapterRecord, manifest: Manifest) -> Manifest:
    """The rows that can be measured."""
    if record.task == "segment":
        return mask_schema_from(record.usage.get("legend")).usable(manifest)
    if record.task == "depth":
        return source_from(record.usage).usable(manifest)
    answer = answer_from(record)
    return LabelColumns(answer.columns, answer.separator).usable(manifest)


def _judge(predictor: AnyPredictor, manifest: Manifest, split: str, unit: Unit | None) -> Judged:
    if isinstance(predictor, ClassifyPredictor):
        return judge_classifier(predictor, manifest, split, unit)
    if unit == "group":
        raise UsageError("one answer for a group is what classifiers give; leave --unit out")
    if isinstance(predictor, DepthPredictor):
        from dinomed.adapters.tasks.depth.evaluate import judge_depth

        return judge_depth(predictor, manifest)
    from dinomed.adapters.tasks.segment.evaluate import (
        judge_segmenter,  # MONAI takes seconds, and classifiers need none
    )

    return judge_segmenter(predictor, manifest)


def _tell_seen(seen: TrainingOverlap, total: int, where: str, folder: str | Path, leave_out: bool) -> None:
    parts = []
    if seen.images:
        parts.append(f"{len(seen.images)} of {total} images of {where} are among them (such as {seen.images[0]})")
    if seen.groups:
        parts.append(f"{len(seen.groups)} of {total} are of a group that is among them (such as {seen.groups[0]})")
    told = f"adapter {folder} has seen these images in training or validation: {', and '.join(parts)}"
    if leave_out and len(seen) > total / 2:
        raise UsageError(f"{told}; give images that it has not seen, or add --allow-seen (the result will say so)")
    logger.warning(f"{told}; {'they are left out' if leave_out else 'the metrics are too good'}")
