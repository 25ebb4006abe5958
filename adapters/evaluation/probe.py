"""How good are frozen features? k-NN and logistic regression, fitted on train, chosen on val, reported on test."""

from pathlib import Path
from typing import Any

import numpy as np

from dinomed.adapters.fitting.data import class_indices, fit_splits, labelled, select_split, train_classes, widen
from dinomed.adapters.heads.logistic import fit_logistic
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.extract import extract
from dinomed.features.knn import knn_probabilities
from dinomed.metrics.classification import classification_metrics
from dinomed.notice import RESEARCH_USE

CHOSEN_BY = "auroc"
REPORTED = ("val", "test")  # splits that nothing is fitted on


def probe(
    backbone: FrozenBackbone,
    manifest: Manifest,
    *,
    cache: str | Path,
    label: str = "label",
    split: str = "test",
    seed: int = 0,
) -> dict[str, Any]:
    """Metrics of both classifiers on the class tokens of the last block.

    k and C are those with the highest macro AUROC on val (of equals the smaller); nothing is fitted on val, nothing is
    chosen on test. Metrics on `split` of every k and C are given too, to see what the choice was worth.

    Args:
        cache: where features are kept (`dinomed.features.extract.default_cache`).
        seed: for making val out of train where the manifest has none.

    Raises:
        UsageError: no labels, one class only, an empty split, a group in two splits, or `split` is neither val nor
            test.
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
    judge_val, judge_test = _judge(splits.val, label, classes, "val"), _judge(chosen, label, classes, split)
    return {
        "purpose": RESEARCH_USE,
        "split": split,
        "backbone": {"name": backbone.name, "fingerprint": backbone.fingerprint},
        "image_size": backbone.preprocessing.image_size,
        "images": {"train": len(train), "val": len(val), split: len(test), "val_made_here": splits.made},
        "classes": {name: int((y == index).sum()) for index, name in enumerate(classes)},
        "chosen_by": f"macro {CHOSEN_BY} on val",
        "knn": _choose("k", knn_of, judge_val, judge_test),
        "logistic": _choose("C", logistic_of, judge_val, judge_test)
        | {"not_converged": [c for c, done in zip(path.cs, path.converged, strict=True) if not done]},
    }


def check_split(split: str) -> None:
    """Raises a `UsageError` for a split that cannot be reported on."""
    if split not in REPORTED:
        told = "train would be measured on itself" if split == "train" else "there is no such split to report on"
        raise UsageError(f"--split {split}: {told}; give {' or '.join(REPORTED)}")


def _judge(manifest: Manifest, label: str, classes: list[str], split: str) -> Any:
    """Probabilities of the images of a manifest -> their metrics."""
    labels, names = class_indices(manifest, label, classes, split)
    return lambda probabilities: classification_metrics(labels, widen(probabilities, len(names)), names)


def _choose(
    name: str, probabilities: dict[str, dict[Any, np.ndarray]], judge_val: Any, judge_test: Any
) -> dict[str, Any]:
    """Metrics on test at the setting that is best on val, and a short row for each setting."""
    val = {value: judge_val(shares) for value, shares in probabilities["val"].items()}
    test = {value: judge_test(shares) for value, shares in probabilities["test"].items()}
    best = max(val, key=lambda value: (np.nan_to_num(val[value][CHOSEN_BY], nan=-1.0), -value))
    short = ("auroc", "balanced_accuracy", "accuracy")
    tried = [
        {name: value, f"val_{CHOSEN_BY}": val[value][CHOSEN_BY], **{key: test[value][key] for key in short}}
        for value in val
    ]
    return {name: best, **test[best], "tried": tried}
