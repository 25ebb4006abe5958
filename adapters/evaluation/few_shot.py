"""Few-shot evaluation: metrics by the number of labelled groups of each class, over several draws.

A shot is a group (a lesion, a patient, a video) with all of its images, because a second image of a lesion adds little
to its label. An image without a group is a group of its own. Draws are nested: 2 shots contain the 1 shot of the same
draw. Each draw is fitted by logistic regression with a fixed penalty, because choosing it on val would need the labels
of val. Features are standardised by all training images, which needs no labels.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.adapters.fitting.data import class_indices, fit_splits, labelled, select_split, train_classes, widen
from dinomed.adapters.heads.solved.logistic import fit_logistic
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.splits import shuffled_key
from dinomed.errors import UsageError
from dinomed.features.extract import extract
from dinomed.log import logger
from dinomed.metrics.classification import classification_metrics
from dinomed.notice import RESEARCH_USE
from dinomed.progress import track

METRICS = ("auroc", "balanced_accuracy", "accuracy")
STRENGTH = 0.1  # C for standardised features: a strong penalty, for few examples with many features
SHOTS = (1, 2, 4, 8, 16, None)
Shots = Sequence[int | None]


def parse_shots(text: str) -> tuple[int | None, ...]:
    """Parse numbers of shots such as "1,2,4,all". Return them in ascending order; all is None.

    Raises:
        UsageError: a word is neither a number from 1 to 999,999,999 nor all.
    """
    numbers: set[int] = set()
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    for word in words:
        if word != "all" and not re.fullmatch(r"0*[1-9][0-9]{0,8}", word):
            raise UsageError(f"`shots={text}`: {word!r} is no number of labels; give numbers such as 1,2,4,8,16,all")
        if word != "all":
            numbers.add(int(word))
    if not words:
        raise UsageError("`shots`: give numbers of labels a class, such as 1,2,4,8,16,all")
    return (*sorted(numbers), *([None] if "all" in words else []))


def draw_shots(labels: np.ndarray, groups: Sequence[object], count: int | None, seed: int) -> np.ndarray:
    """Draw the rows of `count` groups of each class, or of all groups of a class with fewer.

    A group with images of several classes belongs to the class of most of them.

    Args:
        labels: class of each image, int (N,).
        groups: group of each image.
        count: number of groups; None for all.
        seed: decides the random order of the groups.
    """
    if count is None:
        return np.arange(len(labels))
    members: dict[object, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    by_class: dict[int, list[object]] = defaultdict(list)
    for group, rows in members.items():
        by_class[int(np.bincount(labels[rows]).argmax())].append(group)
    chosen = [
        row
        for class_groups in by_class.values()
        for group in sorted(class_groups, key=lambda group: shuffled_key(repr(group), seed))[:count]
        for row in members[group]
    ]
    return np.array(sorted(chosen))


def few_shot(
    backbone: FrozenBackbone,
    manifest: Manifest,
    *,
    cache: str | Path,
    shots: Shots = SHOTS,
    seeds: int = 5,
    label: str = "label",
    split: str = "test",
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate logistic regressions on class tokens of the last block, by the number of shots.

    Args:
        backbone: the frozen backbone.
        manifest: images with labels and splits.
        cache: folder of cached features (`dinomed.features.extract.default_cache`).
        shots: numbers of groups of each class; None for all.
        seeds: number of draws for each number.
        label: column of the classes.
        split: split for the metrics, test or val.
        seed: seed of the first draw.

    Returns:
        `shots`, a row for each number: `shots` (None: all), `images` used (the mean over the draws), and of each metric
        `mean`, `sd`, `low`, `high` over the draws (all is one draw); `chance`, the value of each metric without any
        features; and the identity of backbone and settings.

    Raises:
        UsageError: there are no labels or only one class, a split is empty, or a group is in two splits.
    """
    rows = labelled(manifest, label)
    splits = fit_splits(rows, label, seed)
    evaluated = splits.val if split == "val" else select_split(rows, split)
    classes = train_classes(splits.train, label)
    train, test = (
        extract(backbone, part, cache=cache, description=f"features of {name}").cls
        for name, part in (("train", splits.train), (split, evaluated))
    )
    y, _ = class_indices(splits.train, label, classes, "train")
    targets, names = class_indices(evaluated, label, classes, split)
    groups = splits.train.units()
    plan = [(count, draw) for count in shots for draw in range(1 if count is None else seeds)]
    drawn: dict[int | None, list[dict[str, float]]] = defaultdict(list)
    for count, draw in track(plan, "few-shot"):
        chosen = draw_shots(y, groups, count, seed + draw)
        fitted = np.unique(y[chosen])  # a class is missing if all of its groups belong to other classes
        probabilities = np.zeros((len(test), len(classes)))
        if len(fitted) == 1:  # the same answer for each image, with the metrics of `_chance` for this class
            probabilities[:, fitted] = 1
        else:
            path = fit_logistic(
                train[chosen], np.searchsorted(fitted, y[chosen]), (STRENGTH,), _balance(y[chosen]), train, quiet=True
            )
            probabilities[:, fitted] = path.probabilities(test, 0)
        metrics = classification_metrics(targets, widen(probabilities, len(names)), names)
        drawn[count].append({"images": float(len(chosen)), **{name: metrics[name] for name in METRICS}})
    short = _short_classes(y, groups, classes, [count for count in shots if count is not None])
    return {
        "purpose": RESEARCH_USE,
        "split": split,
        **backbone.describe(),
        "unit": "groups" if splits.train.has("group") else "images",
        "seeds": seeds,
        "C": STRENGTH,
        "n": len(test),
        "classes": len(classes),
        "fewer": short,
        "chance": _chance(targets),
        "shots": [{"shots": count, **_summary(runs)} for count, runs in drawn.items()],
    }


def _summary(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    out: dict[str, Any] = {"images": float(np.mean([run["images"] for run in runs])), "draws": len(runs)}
    for name in METRICS:
        values = np.array([run[name] for run in runs])
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        out[name] = {
            "mean": float(values.mean()),
            "sd": spread,
            "low": float(values.min()),
            "high": float(values.max()),
        }
    return out


def _chance(targets: np.ndarray) -> dict[str, float]:
    """Return the metrics of a classifier that gives each image the same answer, the most frequent class."""
    return {
        "auroc": 0.5,
        "balanced_accuracy": 1 / len(np.unique(targets)),
        "accuracy": float(np.bincount(targets).max() / len(targets)),
    }


def _short_classes(labels: np.ndarray, groups: Sequence[object], classes: Sequence[str], counts: Sequence[int]) -> Any:
    """Return the classes with fewer groups than the largest number of shots, with their numbers, after a warning."""
    most = max(counts, default=0)
    rows_of = {name: np.flatnonzero(labels == index).tolist() for index, name in enumerate(classes)}
    have = {name: len({groups[i] for i in rows}) for name, rows in rows_of.items()}
    short = {name: count for name, count in have.items() if count < most}
    if short:
        listed = ", ".join(f"{name!r} {count}" for name, count in list(short.items())[:5])
        logger.warning(f"fewer than {most} labelled groups in train of: {listed}; all of them are used")
    return short


def _balance(labels: np.ndarray) -> np.ndarray:
    """Return a weight for each example that gives each occurring class the same total weight."""
    counts = np.bincount(labels)
    return len(labels) / (np.count_nonzero(counts) * counts[labels])
