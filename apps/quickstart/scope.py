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
        classes: number of classes in train; 0 if no classifier is trained.
        masks: number of masks in train and val; 0 if no segmenter is trained.
        judge_classes, judge_masks: whether the metrics can be computed on the split test.
        refused: the steps that are left out, each with its reason.
    """

    images: int
    classes: int = 0
    masks: int = 0
    judge_classes: bool = False
    judge_masks: bool = False
    refused: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        """Return one line with the steps to run and the steps that are left out."""
        steps = [f"pretrain on {self.images:,} images"]
        for count, step, is_judged in (
            (self.classes, "classify {:,} classes", self.judge_classes),
            (self.masks, "segment, from {:,} masks", self.judge_masks),
        ):
            steps += [f"{step.format(count)} ({'' if is_judged else 'not '}measured on test)"] if count else []
        left_out = f". Not done: {'; '.join(self.refused)}" if self.refused else ""
        return f"Plan: {', '.join(steps)}, index for similar cases{left_out}."


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
    scope = Scope(_count_trainable(manifest))
    if scope.images < MIN_IMAGES:
        raise UsageError(
            f"{folder}: {len(manifest)} readable images, {scope.images} of them for training; a quickstart needs at "
            f"least {MIN_IMAGES}, and hundreds for useful features; add images, or leave `data` out to use synthetic "
            "lesions"
        )
    with contextlib.redirect_stderr(io.StringIO()):  # the steps print these warnings
        for step, decide in (("classification", _decide_classes), ("segmentation", _decide_masks)):
            try:
                if step == "segmentation" and all_empty:
                    raise UsageError("every mask is empty")
                decide(scope, manifest, seed)
            except UsageError as error:
                scope.refused.append(f"{step} ({error})")
    return scope


def _decide_classes(scope: Scope, manifest: Manifest, seed: int) -> None:
    if not manifest.has("label"):
        raise UsageError("no labels: use `labels`, or a folder for each class")
    rows = labelled(manifest)
    splits = fit_splits(rows, "label", seed)
    classes = {*splits.train.column("label")}
    if len(classes) < 2:
        raise UsageError("train has only one class")
    if not classes.intersection(splits.val.column("label")):
        raise UsageError("no class of val occurs in train")
    scope.classes = len(classes)
    scope.judge_classes = len(classes.intersection(rows.select(split="test").column("label"))) >= 2
    if not scope.judge_classes:
        scope.refused.append("metrics of the classes (test has images of fewer than two classes of train)")


def _decide_masks(scope: Scope, manifest: Manifest, seed: int) -> None:
    if not manifest.has("mask"):
        raise UsageError("no masks: add a folder 'masks' with files named like their images")
    rows = masked(manifest)
    splits = fit_splits(rows, None, seed)
    scope.masks, scope.judge_masks = len(splits.train) + len(splits.val), len(rows.select(split="test")) > 0
    if not scope.judge_masks:
        scope.refused.append("metrics of the segmentation (no mask in test)")


def _count_trainable(manifest: Manifest) -> int:
    """Count the images for pretraining: in train or in no split, and not of a group that is in val or test."""
    splits = manifest.column("split") if manifest.has("split") else [None] * len(manifest)
    groups = manifest.groups()
    held_out = {group for group, split in zip(groups, splits, strict=True) if split in ("val", "test")} - {None}
    return sum(split in (None, "train") and group not in held_out for group, split in zip(groups, splits, strict=True))
