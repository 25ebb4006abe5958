"""Probe of frozen features: k-NN and logistic regression, fitted on train, chosen on val, evaluated on test."""

from pathlib import Path
from typing import Any

import numpy as np

from dinomed.adapters.fitting.data import class_indices, fit_splits, labelled, select_split, train_classes, widen
from dinomed.adapters.heads.solved.logistic import fit_logistic
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.extract import extract
from dinomed.features.knn import knn_probabilities
from dinomed.metrics.classification import classification_metrics
from dinomed.notice import RESEARCH_USE

CHOSEN_BY = "auroc"
REPORTED = ("val", "test")  # splits on which nothing is fitted


def probe(
    backbone: FrozenBackbone,
    manifest: Manifest,
    *,
    cache: str | Path,
    label: str = "label",
    split: str = "test",
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate both classifiers on the class tokens of the last block.

    k and C are those with the highest macro AUROC on val (the smaller one of equals). Nothing is fitted on val, and
    nothing is chosen on test. The report also holds the metrics of every k and C on `split`, which show the effect of
    the choice.

    Args:
        backbone: the frozen backbone.
        manifest: images with labels and splits.
        cache: folder of cached features (`dinomed.features.extract.default_cache`).
        label: column of the classes.
        split: split for the metrics, test or val.
        seed: seed of the split val, which is taken from train if the manifest has none.

    Returns:
        `knn` and `logistic`, each with the chosen setting, its metrics and all tried settings; the number of images and
        classes; and the identity of the backbone.

    Raises:
        UsageError: there are no labels or only one class, a split is empty, a group is in two splits, or `split` is
            neither val nor test.
    """
    check_split(split)
    rows = labelled(manifest, label)
    splits = fit_splits(rows, label, seed)
    chosen = splits.val if split == "val" else select_split(rows, split)
    classes = train_classes(splits.train, label)
    train, val, test = (
        extract(backbone, part, cache=cache, description=f"features of {name}").cls
        for name, part in (("train", splits.train), ("val", splits.val), (split, chosen))
    )
    y, _ = class_indices(splits.train, label, classes, "train")
    path = fit_logistic(train, y)
    knn_of = {name: knn_probabilities(train, y, x, len(classes)) for name, x in (("val", val), ("test", test))}
    logistic_of = {
        name: {c: path.probabilities(x, index) for index, c in enumerate(path.cs)}
        for name, x in (("val", val), ("test", test))
    }
    measure_val, measure_test = (
        _metric_function(splits.val, label, classes, "val"),
        _metric_function(chosen, label, classes, split),
    )
    return {
        "purpose": RESEARCH_USE,
        "split": split,
        **backbone.describe(),
        "images": {"train": len(train), "val": len(val), split: len(test), "val_made_here": splits.made},
        "classes": {name: int((y == index).sum()) for index, name in enumerate(classes)},
        "chosen_by": f"macro {CHOSEN_BY} on val",
        "knn": _choose("k", knn_of, measure_val, measure_test),
        "logistic": _choose("C", logistic_of, measure_val, measure_test)
        | {"not_converged": [c for c, done in zip(path.cs, path.converged, strict=True) if not done]},
    }


def check_split(split: str) -> None:
    """Raise a `UsageError` unless the split can be evaluated."""
    if split not in REPORTED:
        reason = "train would be measured on itself" if split == "train" else "this split cannot be evaluated"
        raise UsageError(f"`split={split}`: {reason}; give {' or '.join(REPORTED)}")


def _metric_function(manifest: Manifest, label: str, classes: list[str], split: str) -> Any:
    """Return the function from probabilities of the images to their metrics."""
    labels, names = class_indices(manifest, label, classes, split)
    return lambda probabilities: classification_metrics(labels, widen(probabilities, len(names)), names)


def _choose(
    name: str, probabilities: dict[str, dict[Any, np.ndarray]], measure_val: Any, measure_test: Any
) -> dict[str, Any]:
    """Return the metrics on test of the setting that is best on val, with a short row for each setting."""
    val = {value: measure_val(shares) for value, shares in probabilities["val"].items()}
    test = {value: measure_test(shares) for value, shares in probabilities["test"].items()}
    best = max(val, key=lambda value: (np.nan_to_num(val[value][CHOSEN_BY], nan=-1.0), -value))
    short = ("auroc", "balanced_accuracy", "accuracy")
    tried = [
        {name: value, f"val_{CHOSEN_BY}": val[value][CHOSEN_BY], **{key: test[value][key] for key in short}}
        for value in val
    ]
    return {name: best, **test[best], "tried": tried}
