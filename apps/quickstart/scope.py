"""Scope of a quickstart: the steps that the images allow, decided after the scan and before any training.

The decisions use the checks of the steps themselves, so that no step fails later.
"""

import contextlib
import io
from dataclasses import dataclass, field
from pathlib import Path

from dinomed.adapters.fitting.data import fit_splits, labelled, masked
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError

MIN_IMAGES = 4  # for pretraining; hundreds are needed to learn something


@dataclass
class Scope:
    """The steps of a quickstart.

    Attributes:
        images: number of images for pretraining.
        classes: number of classes in train.
        masks: number of masks in train and val.
        classify, segment: whether this head is trained.
        judge_classes, judge_masks: whether the split test can measure it.
        refused: for each step that is left out, the step and the reason.
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
        """Return the steps, and those that are left out, in one line."""
        steps = [f"pretrain on {self.images:,} images"]
        if self.classify:
            steps.append(f"classify {self.classes} classes ({_measured(self.judge_classes)})")
        if self.segment:
            steps.append(f"segment, from {self.masks:,} masks ({_measured(self.judge_masks)})")
        left_out = f". Not done: {'; '.join(self.refused)}" if self.refused else ""
        return f"Plan: {', '.join(steps)}{left_out}."


def find_scope(manifest: Manifest, folder: Path, seed: int, *, all_empty: bool = False) -> Scope:
    """Return the steps that the images of a manifest allow.

    Args:
        manifest: from the scan of `folder`.
        folder: the folder, for messages.
        seed: seed of the steps; it decides which images become val if there is none.
        all_empty: no mask has foreground.

    Raises:
        UsageError: there are too few images for pretraining.
    """
    images = _count_trainable(manifest)
    if images < MIN_IMAGES:
        raise UsageError(
            f"{folder}: {len(manifest)} images that can be read, {images} of them to train on; a quickstart needs "
            f"{MIN_IMAGES} at the least, and hundreds to learn something: add images, or leave --data out"
        )
    scope = Scope(images)
    _decide_classes(scope, manifest, seed)
    _decide_masks(scope, manifest, seed, all_empty)
    return scope


def _measured(on_test: bool) -> str:
    return "judged on test" if on_test else "not judged"


def _decide_classes(scope: Scope, manifest: Manifest, seed: int) -> None:
    if not manifest.has("label"):
        scope.refused.append("classification (no labels: give --labels, or a folder for each class)")
        return
    try:
        train, val = _splits(labelled(manifest), "label", seed)
    except UsageError as error:
        scope.refused.append(f"classification ({error})")
        return
    classes = {*train.column("label")}
    if len(classes) < 2:
        scope.refused.append("classification (the labels of train are of one class)")
    elif not classes.intersection(val.column("label")):
        scope.refused.append("classification (no label of val is known to train)")
    else:
        scope.classify, scope.classes = True, len(classes)
        scope.judge_classes = len(classes.intersection(_test_column(labelled(manifest), "label"))) >= 2
        if not scope.judge_classes:
            scope.refused.append("judging the features by classes (test has no images of two classes that train has)")


def _decide_masks(scope: Scope, manifest: Manifest, seed: int, all_empty: bool) -> None:
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
    scope.judge_masks = bool(_test_column(masked(manifest), "mask"))
    if not scope.judge_masks:
        scope.refused.append("judging the segmentation (no mask in test)")


def _splits(rows: Manifest, column: str | None, seed: int) -> tuple[Manifest, Manifest]:
    """Return train and val as the steps take them, without their warnings, which the steps write themselves."""
    with contextlib.redirect_stderr(io.StringIO()):
        splits = fit_splits(rows, column, seed)
    return splits.train, splits.val


def _test_column(rows: Manifest, column: str) -> list[str]:
    return rows.select(split="test").column(column)


def _count_trainable(manifest: Manifest) -> int:
    """Count the images for pretraining: in train or in no split, and not of a group that is in val or test."""
    splits = manifest.column("split") if manifest.has("split") else [None] * len(manifest)
    groups = manifest.groups()
    held_out = {group for group, split in zip(groups, splits, strict=True) if split in ("val", "test")} - {None}
    return sum(split in (None, "train") and group not in held_out for group, split in zip(groups, splits, strict=True))
