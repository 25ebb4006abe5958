"""Usable rows, splits and class indices of a manifest, with errors and warnings about them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinomed.datasets.manifest import KNOWN, Manifest
from dinomed.datasets.splits import check_splits, make_splits
from dinomed.errors import UsageError
from dinomed.log import logger

VAL_SHARE = 0.15  # share of train that becomes val if the manifest has no val


@dataclass(frozen=True)
class Splits:
    """Rows for training and for validation.

    Attributes:
        made: whether `val` was taken from train here.
        pool: images among which all of `train` and `val` are. Features that are computed once are extracted for all of
            them, once for all folds of a cross-validation; those of augmented images and of a tuned backbone are not.
            None: each split by itself.
    """

    train: Manifest
    val: Manifest
    made: bool
    pool: Manifest | None = None


def labelled(manifest: Manifest, column: str = "label") -> Manifest:
    """Return the rows that have a label; raise a `UsageError` if the column is missing or empty."""
    if not manifest.has(column):
        skipped = {*KNOWN, column} - {"label", "group"}
        columns = [name for name in manifest.columns if name not in skipped and manifest.has(name)]
        raise UsageError(
            f"{manifest.called} has no labels in a column {column!r} (columns: {', '.join(columns) or 'none'}); "
            f"use --label COLUMN, or scan with labels: {manifest.scan_again('--labels FILE.csv')} (or "
            "`labels=folders`, with a folder for each class)"
        )
    return manifest.take([i for i, value in enumerate(manifest.column(column)) if value is not None])


def masked(manifest: Manifest) -> Manifest:
    """Return the rows that have a mask; raise a `UsageError` if there are none."""
    if not manifest.has("mask"):
        raise UsageError(
            f"{manifest.called} has no masks; put them into a folder 'masks' beside 'images', or name them in a "
            f"column 'mask' of a CSV file: {manifest.scan_again('--labels FILE.csv')}"
        )
    return manifest.take([i for i, value in enumerate(manifest.column("mask")) if value is not None])


def select_split(manifest: Manifest, split: str) -> Manifest:
    """Return the rows of a split; raise a `UsageError` if there are none."""
    if not manifest.has("split"):
        raise UsageError(f"{manifest.called} has no splits; scan makes them, by group: {manifest.scan_again()}")
    rows = manifest.select(split=split)
    if not len(rows):
        counts = Counter(value for value in manifest.column("split") if value is not None)
        splits = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        raise UsageError(f"{manifest.called} has no usable image in split {split!r} (splits: {splits or 'none'})")
    return rows


def fit_splits(manifest: Manifest, column: str | None, seed: int) -> Splits:
    """Return train and val. If val is missing, it is taken from train by group and label, with a warning.

    Args:
        column: labels by which val is stratified; None for no stratification.

    Raises:
        UsageError: no split column, no train, a group in two splits, or too few groups to make val.
    """
    train = select_split(manifest, "train")
    check_splits(manifest.groups(), manifest.column("split"), manifest.column("image"))
    if "val" in manifest.column("split"):
        return Splits(train, manifest.select(split="val"), made=False)
    labels = train.column(column) if column else [None] * len(train)
    assigned = make_splits(train.units(), labels, (1 - VAL_SHARE, VAL_SHARE, 0), seed)
    parts = {name: [i for i, split in enumerate(assigned) if split == name] for name in ("train", "val")}
    if not parts["train"] or not parts["val"]:
        raise UsageError("no split 'val', and train has too few groups to make one; add images or a split column")
    logger.warning(
        f"{manifest.called} has no split 'val': {len(parts['val'])} of {len(train)} training images are used "
        "for validation instead, by group"
    )
    return Splits(train.take(parts["train"]), train.take(parts["val"]), made=True)


def train_classes(train: Manifest, column: str) -> list[str]:
    """Return the sorted classes of the training images, with a warning for classes with one image.

    Raises:
        UsageError: fewer than two classes.
    """
    counts = Counter(train.column(column))
    if len(counts) < 2:
        raise UsageError(
            f"the training images have one class only ({next(iter(counts))!r} in column {column!r}); "
            "a classifier needs two or more"
        )
    single = sorted(name for name, count in counts.items() if count == 1)
    if single:
        logger.warning(f"only one training image of {_list_classes(single)}: the head cannot generalise from one image")
    return sorted(counts)


def class_indices(manifest: Manifest, column: str, classes: Sequence[str], split: str) -> tuple[np.ndarray, list[str]]:
    """Return labels as indices, int64 (N,), and the class names to which they refer.

    Labels that are not in `classes` are appended to the names, with a warning: training has no such images, so every
    prediction for them counts as wrong.
    """
    labels = manifest.column(column)
    unseen = sorted(set(labels) - set(classes))
    if unseen:
        count = sum(label in unseen for label in labels)
        logger.warning(
            f"{split} has {_list_classes(unseen)} ({count} images), unknown to training: they count as wrong and have "
            "no AUROC"
        )
    names = [*classes, *unseen]
    absent = [name for name in classes if name not in set(labels)]
    if absent:
        logger.info(f"{split} has no image of {_list_classes(absent)}: no AUROC for it; the means leave it out")
    index = {name: i for i, name in enumerate(names)}
    return np.array([index[label] for label in labels], np.int64), names


def widen(probabilities: np.ndarray, num_classes: int) -> np.ndarray:
    """Append columns of nan to probabilities (N, K), for classes that the classifier does not know."""
    extra = num_classes - probabilities.shape[1]
    return np.pad(probabilities.astype(np.float64), ((0, 0), (0, extra)), constant_values=np.nan)


def list_names(singular: str, plural: str, names: Sequence[str]) -> str:
    """Return the first five names in quotes, after the noun in its singular or plural form."""
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{singular if len(names) == 1 else plural} {shown}{', ...' if len(names) > 5 else ''}"


def _list_classes(names: Sequence[str]) -> str:
    return list_names("class", "classes", names)
