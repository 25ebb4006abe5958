"""Scope of a quickstart: the steps that the images allow, decided after the scan and before any training.

The decisions call the same checks as the steps, so that no step fails later.
"""

import contextlib
import io
from dataclasses import dataclass, field
from pathlib import Path

from dinomed.adapters.fitting.data import fit_splits, labelled, masked
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError

MIN_IMAGES = 4  # for pretraining; useful features need hundreds


@dataclass
class Scope:
    """The steps of a quickstart.

    Attributes:
        images: number of images for pretraining.
        classes: number of classes in train.
        masks: number of masks in train and val.
        classify, segment: whether this head is trained.
        judge_classes, judge_masks: whether its metrics can be computed on the split test.
        refused: the steps that are left out, each with its reason.
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
        """Return one line with the steps to run and the steps that are left out."""
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
        seed: seed of the steps; without a split val, it decides which images become val.
        all_empty: whether no mask has foreground.

    Raises:
        UsageError: there are too few images for pretraining.
    """
    images = _count_trainable(manifest)
    if images < MIN_IMAGES:
        raise UsageError(
            f"{folder}: {len(manifest)} readable images, {images} of them for training; a quickstart needs at least "
            f"{MIN_IMAGES}, and hundreds for useful features; add images, or omit --data to use synthetic lesions"
        )
    scope = Scope(images)
    _decide_classes(scope, manifest, seed)
    _decide_masks(scope, manifest, seed, all_empty)
    return scope


def _measured(on_test: bool) -> str:
    return "measured on test" if on_test else "not measured"


def _decide_classes(scope: Scope, manifest: Manifest, seed: int) -> None:
    if not manifest.has("label"):
        scope.refused.append("classification (no labels: use --labels, or a folder for each class)")
        return
    try:
        train, val = _splits(labelled(manifest), "label", seed)
    except UsageError as error:
        scope.refused.append(f"classification ({error})")
        return
    classes = {*train.column("label")}
    if len(classes) < 2:
        scope.refused.append("classification (train has only one class)")
    elif not classes.intersection(val.column("label")):
        scope.refused.append("classification (no class of val occurs in train)")
    else:
        scope.classify, scope.classes = True, len(classes)
        scope.judge_classes = len(classes.intersection(_test_column(labelled(manifest), "label"))) >= 2
        if not scope.judge_classes:
            scope.refused.append("metrics of the classes (test has images of fewer than two classes of train)")


def _decide_masks(scope: Scope, manifest: Manifest, seed: int, all_empty: bool) -> None:
    if not manifest.has("mask"):
        scope.refused.append(
            "segmentation and demo (no masks: add a folder `masks` with files named like their images)"
        )
        return
    if all_empty:
        scope.refused.append("segmentation and demo (every mask is empty)")
        return
    try:
        train, val = _splits(masked(manifest), None, seed)
    except UsageError as error:
        scope.refused.append(f"segmentation and demo (images with masks: {error})")
        return
    scope.segment, scope.masks = True, len(train) + len(val)
    scope.judge_masks = bool(_test_column(masked(manifest), "mask"))
    if not scope.judge_masks:
        scope.refused.append("metrics of the segmentation (no mask in test)")


def _splits(rows: Manifest, column: str | None, seed: int) -> tuple[Manifest, Manifest]:
    """Return train and val as the steps select them. Warnings are hidden, because the steps print them again."""
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
