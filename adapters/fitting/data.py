"""From a manifest to what a fit needs: usable rows, splits, class indices; and what is wrong with them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinomed.datasets.manifest import KNOWN, Manifest
from dinomed.datasets.splits import check_splits, make_splits
from dinomed.errors import UsageError
from dinomed.log import logger

VAL_SHARE = 0.15  # of train, where the manifest has no val


@dataclass(frozen=True)
class Splits:
    """Rows to fit on and to choose on. `made` says that `val` was cut out of train here."""

    train: Manifest
    val: Manifest
    made: bool


def labelled(manifest: Manifest, column: str = "label") -> Manifest:
    """The rows that have a class.

    Raises:
        UsageError: no such column, or it is empty.
    """
    if not manifest.has(column):
        own = {*KNOWN} - {"label", "group"}
        others = [name for name in manifest.columns if name not in {*own, column} and manifest.has(name)]
        raise UsageError(
            f"{manifest.called} has no labels in a column {column!r} (columns: {', '.join(others) or 'none'}); "
            f"name another one, or make them: {manifest.scan_again('--labels FILE.csv')} (--label COLUMN names theirs; "
            "--labels folders takes a folder for each class)"
        )
    return manifest.take([i for i, value in enumerate(manifest.column(column)) if value is not None])


def masked(manifest: Manifest) -> Manifest:
    """The rows that have a mask. Raises a `UsageError` if there are none."""
    if not manifest.has("mask"):
        raise UsageError(
            f"{manifest.called} has no masks; put them into a folder masks beside images, or name them in a column "
            f"mask of a CSV: {manifest.scan_again('--labels FILE.csv')}"
        )
    return manifest.take([i for i, value in enumerate(manifest.column("mask")) if value is not None])


def select_split(manifest: Manifest, split: str) -> Manifest:
    """The rows of one split; a `UsageError` if there are none."""
    if not manifest.has("split"):
        raise UsageError(f"{manifest.called} has no splits; scan makes them, by group: {manifest.scan_again()}")
    found = manifest.select(split=split)
    if not len(found):
        counts = Counter(value for value in manifest.column("split") if value is not None)
        there = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        raise UsageError(f"{manifest.called} has no usable image in split {split!r} (there are: {there or 'none'})")
    return found


def fit_splits(manifest: Manifest, column: str | None, seed: int) -> Splits:
    """Train and val. Where val is missing it is made from train, by group and label, with a warning.

    Raises:
        UsageError: no split column, no train, a group in two splits, or too few groups to make val.
    """
    train = select_split(manifest, "train")
    check_splits(manifest.groups(), manifest.column("split"))
    if "val" in manifest.column("split"):
        return Splits(train, manifest.select(split="val"), made=False)
    labels = train.column(column) if column else [None] * len(train)
    assigned = make_splits(train.units(), labels, (1 - VAL_SHARE, VAL_SHARE, 0), seed)
    parts = {name: [i for i, split in enumerate(assigned) if split == name] for name in ("train", "val")}
    if not parts["train"] or not parts["val"]:
        raise UsageError("no split 'val', and train has too few groups to make one; add images or a split column")
    logger.warning(
        f"{manifest.called} has no split 'val': {len(parts['val'])} of {len(train)} training images are set aside "
        "for it, by group; settings are chosen on them"
    )
    return Splits(train.take(parts["train"]), train.take(parts["val"]), made=True)


def train_classes(train: Manifest, column: str) -> list[str]:
    """The classes of the training images, sorted; warns of those with one image.

    Raises:
        UsageError: fewer than two.
    """
    counts = Counter(train.column(column))
    if len(counts) < 2:
        raise UsageError(
            f"the training images have one class only ({next(iter(counts))!r} in column {column!r}); "
            "a classifier needs two or more"
        )
    single = sorted(name for name, count in counts.items() if count == 1)
    if single:
        logger.warning(f"one training image only of {_list(single)}: what is learned of it is that image")
    return sorted(counts)


def class_indices(manifest: Manifest, column: str, classes: Sequence[str], split: str) -> tuple[np.ndarray, list[str]]:
    """Labels as int64 indices (N,) into `classes` extended by those that only occur here, and that extended list.

    Classes that training has not seen are warned about: their images cannot be predicted right, and count as wrong.
    """
    labels = manifest.column(column)
    unseen = sorted(set(labels) - set(classes))
    if unseen:
        count = sum(label in unseen for label in labels)
        logger.warning(
            f"{split} has {_list(unseen)} ({count} images), unknown to training: they count as wrong, with no AUROC"
        )
    names = [*classes, *unseen]
    absent = [name for name in classes if name not in set(labels)]
    if absent:
        logger.info(
            f"note: {split} has no image of {_list(absent)}; it has no AUROC there and is left out of the means"
        )
    index = {name: i for i, name in enumerate(names)}
    return np.array([index[label] for label in labels], np.int64), names


def widen(probabilities: np.ndarray, num_classes: int) -> np.ndarray:
    """(N, K) with columns of nan for the classes beyond K: the classifier does not know them."""
    extra = num_classes - probabilities.shape[1]
    return np.pad(probabilities.astype(np.float64), ((0, 0), (0, extra)), constant_values=np.nan)


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{'class' if len(names) == 1 else 'classes'} {shown}{', ...' if len(names) > 5 else ''}"
