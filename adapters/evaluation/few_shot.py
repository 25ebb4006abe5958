"""How many labels are needed? Metrics over the number of labelled groups a class, several draws of each.

A shot is a group (a lesion, a patient, a video) with all of its images, since a second picture of a lesion is hardly a
second label; an image without a group is one of its own. Draws are nested: 2 shots are the 1 shot and another. Each
draw is fitted by logistic regression of a fixed strength: choosing it on val would spend the labels of val, which
nobody has who asks this question. Features are standardised by all training images, for which no label is needed.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.adapters.fitting.data import class_indices, fit_splits, labelled, select_split, train_classes, widen
from dinomed.adapters.heads.logistic import fit_logistic
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.extract import extract
from dinomed.log import logger
from dinomed.metrics.classification import classification_metrics
from dinomed.notice import RESEARCH_USE
from dinomed.progress import track

METRICS = ("auroc", "balanced_accuracy", "accuracy")
STRENGTH = 0.1  # C for standardised features; a strong penalty, as for few examples of many features
SHOTS = (1, 2, 4, 8, 16, None)
Shots = Sequence[int | None]


def parse_shots(text: str) -> tuple[int | None, ...]:
    """Numbers of shots out of "1,2,4,all", rising; all is None.

    Raises:
        UsageError: a word that is neither a number from 1 nor all.
    """
    found: set[int] = set()
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    for word in words:
        if word != "all" and not (word.isascii() and word.isdecimal() and int(word) > 0):
            raise UsageError(f"--few-shot {text}: {word!r} is no number of labels; give such as 1,2,4,8,16,all")
        if word != "all":
            found.add(int(word))
    if not words:
        raise UsageError("--few-shot: give numbers of labels a class, such as 1,2,4,8,16,all")
    return (*sorted(found), *([None] if "all" in words else []))


def draw_shots(labels: np.ndarray, groups: Sequence[object], count: int | None, seed: int) -> np.ndarray:
    """Rows of `count` groups of each class (all of a class that has fewer), by a random order that the seed decides.

    A group whose images are of several classes counts for the class of most of them.

    Args:
        labels: int (N,). groups: N.
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
        for own in by_class.values()
        for group in sorted(own, key=lambda group: _shuffled(group, seed))[:count]
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
    """Metrics on `split` of logistic regressions on class tokens of the last block, over the number of shots.

    Returns:
        `shots`, a row for each number: `shots` (None: all), `images` used (the mean over the draws), and of each metric
        `mean`, `sd`, `low`, `high` over the draws (all is one draw); and what identifies backbone and settings.

    Raises:
        UsageError: no labels, one class only, an empty split, a group in two splits.
    """
    rows = labelled(manifest, label)
    splits = fit_splits(rows, label, seed)
    judged = splits.val if split == "val" else select_split(rows, split)
    classes = train_classes(splits.train, label)
    train, test = (
        extract(backbone, part, cache=cache, description=f"features of {name}").cls
        for name, part in (("train", splits.train), (split, judged))
    )
    y, _ = class_indices(splits.train, label, classes, "train")
    targets, names = class_indices(judged, label, classes, split)
    groups = splits.train.units()
    plan = [(count, draw) for count in shots for draw in range(1 if count is None else seeds)]
    drawn: dict[int | None, list[dict[str, float]]] = defaultdict(list)
    for count, draw in track(plan, "few-shot"):
        chosen = draw_shots(y, groups, count, seed + draw)
        fitted = np.unique(y[chosen])  # a class that lost all of its groups to mixed ones
        path = fit_logistic(
            train[chosen], np.searchsorted(fitted, y[chosen]), (STRENGTH,), _balance(y[chosen]), train, quiet=True
        )
        probabilities = np.zeros((len(test), len(classes)))
        probabilities[:, fitted] = path.probabilities(test, 0)
        found = classification_metrics(targets, widen(probabilities, len(names)), names)
        drawn[count].append({"images": float(len(chosen)), **{name: found[name] for name in METRICS}})
    short = _short_classes(y, groups, classes, [count for count in shots if count is not None])
    return {
        "purpose": RESEARCH_USE,
        "split": split,
        "backbone": {"name": backbone.name, "fingerprint": backbone.fingerprint},
        "image_size": backbone.preprocessing.image_size,
        "unit": "groups" if splits.train.has("group") else "images",
        "seeds": seeds,
        "C": STRENGTH,
        "n": len(test),
        "classes": len(classes),
        "fewer": short,
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


def _short_classes(labels: np.ndarray, groups: Sequence[object], classes: Sequence[str], counts: Sequence[int]) -> Any:
    """Classes with fewer groups than the largest number of shots, and how many they have; told once."""
    most = max(counts, default=0)
    rows_of = {name: np.flatnonzero(labels == index).tolist() for index, name in enumerate(classes)}
    have = {name: len({groups[i] for i in rows}) for name, rows in rows_of.items()}
    short = {name: count for name, count in have.items() if count < most}
    if short:
        told = ", ".join(f"{name!r} {count}" for name, count in list(short.items())[:5])
        logger.warning(f"fewer than {most} labelled groups in train of: {told}; all of them are used")
    return short


def _balance(labels: np.ndarray) -> np.ndarray:
    """A weight for each example, by which every class that is there counts the same."""
    counts = np.bincount(labels)
    return len(labels) / (np.count_nonzero(counts) * counts[labels])


def _shuffled(group: object, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{group!r}".encode()).digest()
