"""Metrics of a saved adapter on one split, through the same path as prediction: image in, prediction out."""

from pathlib import Path
from typing import Any

from dinomed.adapters.bundle import read_record, read_seen
from dinomed.adapters.data import labelled, masked, select_split
from dinomed.adapters.evaluate_classify import measure_classifier
from dinomed.adapters.evaluate_segment import measure_segmenter
from dinomed.adapters.predict import SegmentPredictor, load_adapter
from dinomed.adapters.seen import Overlap
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.notice import RESEARCH_USE
from dinomed.progress import warn


def evaluate(
    folder: str | Path,
    manifest: Manifest,
    split: str = "test",
    *,
    device: str = "cpu",
    backbone: str | Path | None = None,
    allow_seen: bool = False,
) -> dict[str, Any]:
    """Metrics over the images of `split` that have a mask (segmenter) or a label (classifier).

    Masks are compared at each image's own size. See `dinomed.metrics` for what the values mean and for the policy on
    empty masks and absent classes.

    Images that the adapter has seen in training or validation, and others of their groups, are left out with a
    warning: a duplicate across the splits is common, and must not flatter. On the splits train and val, which are all
    seen, they stay.

    Args:
        allow_seen: leave none out on other splits either. Metrics are then too good, and the result says so.

    Returns:
        `task`, `split`, `metrics`, `threshold` or `classes`, what identifies adapter, backbone and images, and
        `seen_in_training`: how many `images` were, how many others are `of_seen_groups`, and whether they are
        `left_out`.

    Raises:
        UsageError: no labels or masks, an empty split, no adapter in `folder`, or a split most of which it has seen.
        DinomedError: an image or mask cannot be read.
    """
    record = read_record(folder)
    column = record.training.get("label_column", "label")
    rows = masked(manifest) if record.task == "segment" else labelled(manifest, column)
    chosen = select_split(rows, split)
    seen = read_seen(folder, record).find(chosen, manifest)
    leave_out = bool(seen) and not allow_seen and split not in ("train", "val")
    if seen:
        _tell_seen(seen, len(chosen), f"split {split!r}", folder, leave_out)
    if leave_out:
        chosen = seen.remove_from(chosen)
    predictor = load_adapter(folder, device, backbone)
    result: dict[str, Any] = {"purpose": RESEARCH_USE, "adapter": str(folder), "task": predictor.task, "split": split}
    if isinstance(predictor, SegmentPredictor):
        result |= {"threshold": predictor.threshold, "metrics": measure_segmenter(predictor, chosen)}
    else:
        result |= {"classes": predictor.classes, "metrics": measure_classifier(predictor, chosen, column, split)}
    return result | {
        "seen_in_training": {
            "images": len(seen.images),
            "of_seen_groups": len(seen.groups),
            "left_out": leave_out,
        },
        "backbone": {"name": predictor.backbone.name, "fingerprint": predictor.backbone.fingerprint},
        "image_size": predictor.backbone.preprocessing.image_size,
        "images": chosen.fingerprint,
    }


def _tell_seen(seen: Overlap, total: int, where: str, folder: str | Path, leave_out: bool) -> None:
    parts = []
    if seen.images:
        parts.append(f"{len(seen.images)} of {total} images of {where} are among them (such as {seen.images[0]})")
    if seen.groups:
        parts.append(f"{len(seen.groups)} of {total} are of a group that is among them (such as {seen.groups[0]})")
    told = f"adapter {folder} has seen these images in training or validation: {', and '.join(parts)}"
    if leave_out and len(seen) > total / 2:
        raise UsageError(f"{told}; give images that it has not seen, or add --allow-seen (the result will say so)")
    warn(f"{told}; {'they are left out' if leave_out else 'the metrics are too good'}")
