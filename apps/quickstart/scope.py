"""What a quickstart can do with the images at hand: decided after the scan, before anything is trained.

The answers come from the checks that the steps themselves make, so that none of them is refused later on.
"""

import contextlib
import io
from dataclasses import dataclass, field
from pathlib import Path

from dinomed.adapters.fitting.data import fit_splits, labelled, masked
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError

MIN_IMAGES = 4  # to pretrain on; hundreds are needed to learn anything


@dataclass
class Scope:
    """Which steps are done. `refused` holds a line of why for each that is not.

    `images` is how many there are to pretrain on; `classify` and `segment` say that a head is trained, `judge_classes`
    and `judge_masks` that the split test can judge it.
    """

    images: int
    classes: int = 0
    masks: int = 0
    classify: bool = False
    judge_classes: bool = False
    segment: bool = False
    judge_masks: bool = False
    refused: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        """What will be done, and what not, in one line."""
        steps = [f"pretrain on {self.images:,} images"]
        if self.classify:
            judged = "judged on test" if self.judge_classes else "not judged"
            steps.append(f"classify {self.classes} classes ({judged})")
        if self.segment:
            judged = "judged on test" if self.judge_masks else "not judged"
            steps.append(f"segment, from {self.masks:,} masks ({judged})")
        left_out = f". Not done: {'; '.join(self.refused)}" if self.refused else ""
        return f"Plan: {', '.join(steps)}{left_out}."


def find_scope(manifest: Manifest, folder: Path, seed: int, *, all_empty: bool = False) -> Scope:
    """The steps that the images of `manifest`, scanned from `folder`, allow.

    Args:
        seed: of the steps; it decides what is set aside where there is no val.
        all_empty: no mask has any foreground.

    Raises:
        UsageError: too few images to pretrain on.
    """
    images = _count_trainable(manifest)
    if images < MIN_IMAGES:
        raise UsageError(
            f"{folder}: {len(manifest)} images that can be read, {images} of them to train on; a quickstart needs "
            f"{MIN_IMAGES} at the least, and hundreds to learn anything: add images, or try it without --data"
        )
    scope = Scope(images)
    _look_at_labels(scope, manifest, seed)
    _look_at_masks(scope, manifest, seed, all_empty)
    return scope


def _look_at_labels(scope: Scope, manifest: Manifest, seed: int) -> None:
    if not manifest.has("label"):
        scope.refused.append("classification (no labels: give --labels, or a folder for each class)")
        return
    try:
        train, val = _splits(labelled(manifest), "label", seed)
    except UsageError as error:
        scope.refused.append(f"classification ({error})")
        return
    known = {*train.column("label")}
    if len(known) < 2:
        scope.refused.append("classification (the labels of train are of one class)")
    elif not known.intersection(val.column("label")):
        scope.refused.append("classification (no label of val is known to train)")
    else:
        scope.classify, scope.classes = True, len(known)
        scope.judge_classes = len(known.intersection(_of_test(labelled(manifest), "label"))) >= 2
        if not scope.judge_classes:
            scope.refused.append("judging the features by classes (test has no images of two classes that train has)")


def _look_at_masks(scope: Scope, manifest: Manifest, seed: int, all_empty: bool) -> None:
    if not manifest.has("mask"):
        scope.refused.append("segmentation and demo (no masks: a folder `masks`, its files named as their images)")
        return
    if all_empty:
        scope.refused.append("segmentation and demo (every mask is empty)")
        return
    try:
        train, val = _splits(masked(manifest), None, seed)
    except UsageError as error:
        scope.refused.append(f"segmentation and demo (of the images with masks: {error})")
        return
    scope.segment, scope.masks = True, len(train) + len(val)
    scope.judge_masks = bool(_of_test(masked(manifest), "mask"))
    if not scope.judge_masks:
        scope.refused.append("judging the segmentation (no mask in test)")


def _splits(rows: Manifest, column: str | None, seed: int) -> tuple[Manifest, Manifest]:
    """Train and val as the steps will take them; what they warn of, they will say themselves."""
    with contextlib.redirect_stderr(io.StringIO()):
        splits = fit_splits(rows, column, seed)
    return splits.train, splits.val


def _of_test(rows: Manifest, column: str) -> list[str]:
    return rows.select(split="test").column(column)


def _count_trainable(manifest: Manifest) -> int:
    """Images that pretraining uses: of train or of no split, and of no group that has others in val or test."""
    splits = manifest.column("split") if manifest.has("split") else [None] * len(manifest)
    groups = manifest.groups()
    held = {group for group, split in zip(groups, splits, strict=True) if split in ("val", "test")} - {None}
    return sum(split in (None, "train") and group not in held for group, split in zip(groups, splits, strict=True))
