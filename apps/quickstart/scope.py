"""Scope of a quickstart: the steps that the images allow, decided by the checks of these steps before any training."""

import contextlib
import io
from dataclasses import dataclass, field
from pathlib import Path

from dinomed.adapters.fitting.data import fit_splits, labelled, masked, train_classes
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.pretrain.data.select_images import select_images

MIN_IMAGES = 4  # for pretraining; useful features need hundreds


@dataclass
class Scope:
    """The steps of a quickstart.

    Attributes:
        images: number of images for pretraining.
        tasks: task of each head to train -> whether its metrics can be computed on the split test.
        plan: a part of `sentence` for each task.
        refused: the steps that are left out, each with its reason.
    """

    images: int
    tasks: dict[str, bool] = field(default_factory=dict)
    plan: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def add(self, task: str, step: str, measured: bool, reason: str) -> None:
        """Add a head; `reason` is why its metrics cannot be `measured`."""
        self.tasks[task] = measured
        self.plan.append(f"{step} ({'' if measured else 'not '}measured on test)")
        self.refused += [] if measured else [reason]

    def sentence(self) -> str:
        """Return one line with the steps to run and the steps that are left out."""
        steps = [f"pretrain on {self.images:,} images", *self.plan, "index for similar cases"]
        return f"Plan: {', '.join(steps)}{'. Not done: ' if self.refused else ''}{'; '.join(self.refused)}."


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
    scope = Scope(len(select_images(manifest, 0, 0)[0]))
    if scope.images < MIN_IMAGES:
        raise UsageError(
            f"{folder}: {len(manifest)} readable images, {scope.images} of them for training; a quickstart needs at "
            f"least {MIN_IMAGES}, and hundreds for useful features; add images, or leave `data` out to use synthetic "
            "lesions"
        )
    with contextlib.redirect_stderr(io.StringIO()):  # the steps print these warnings
        for step, add in (("classification", _add_classifier), ("segmentation", _add_segmenter)):
            try:
                if step == "segmentation" and all_empty:
                    raise UsageError("every mask is empty")
                add(scope, manifest, seed)
            except UsageError as error:
                scope.refused.append(f"{step} ({error})")
    return scope


def _add_classifier(scope: Scope, manifest: Manifest, seed: int) -> None:
    if not manifest.has("label"):
        raise UsageError("no labels: use `labels`, or a folder for each class")
    rows = labelled(manifest)
    splits = fit_splits(rows, "label", seed)
    classes = set(train_classes(splits.train, "label"))
    if not classes.intersection(splits.val.column("label")):
        raise UsageError("no class of val occurs in train")
    measured = len(classes.intersection(rows.select(split="test").column("label"))) >= 2
    reason = "metrics of the classes (test has images of fewer than two classes of train)"
    scope.add("classify", f"classify {len(classes)} classes", measured, reason)


def _add_segmenter(scope: Scope, manifest: Manifest, seed: int) -> None:
    if not manifest.has("mask"):
        raise UsageError("no masks: add a folder 'masks' with files named like their images")
    rows = masked(manifest)
    splits = fit_splits(rows, None, seed)
    count, measured = len(splits.train) + len(splits.val), len(rows.select(split="test")) > 0
    scope.add("segment", f"segment, from {count:,} masks", measured, "metrics of the segmentation (no mask in test)")
