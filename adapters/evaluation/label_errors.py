"""Label errors: images whose label disagrees with out-of-fold predictions and with their neighbours.

Confident learning (Northcutt, Jiang, Chuang: Confident Learning, JAIR 70, 2021, section 3.1): an image of label i
counts as class j if its probability of j is at least the mean probability of j over the images that are labelled j; of
several such classes the most probable one counts. Images with i other than j are the off-diagonal of the confident
joint.

Two estimates of the probabilities are used: a logistic regression that was fitted on the other folds, and the labels
of the nearest images of other groups. An image is a suspect if both give another class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinomed.adapters.heads.solved.logistic import fit_logistic
from dinomed.datasets.splits import make_folds
from dinomed.errors import UsageError
from dinomed.features.neighbors import normalised, search_exactly
from dinomed.metrics.classification import classification_metrics

NEIGHBORS = 10
MAX_CLASSES = 100
CS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Values of C of the regression; the one with the least out-of-fold loss is used."""
WEAK_AUROC = 0.8
"""Macro AUROC of the out-of-fold predictions below which a warning is given."""
RANKED_COLUMNS = (
    "rank", "image", "label", "predicted", "suggested", "suspect", "doubt", "label_probability",
    "predicted_probability", "neighbors_with_label", "neighbors_with_predicted",
)  # fmt: skip
_MAX_PAIRS = 2**22  # of a query and a neighbour in one search, 12 bytes each


@dataclass(frozen=True)
class LabelErrors:
    """Result of the search among N images that can be judged, of K classes.

    Attributes:
        classes: names of the classes.
        rows: row of each image in the features, int (N,), the most doubtful first.
        labels: class of each image, int (N,).
        predicted: class as which the image counts, int (N,); if none or the label, the most probable other class.
        probabilities: out-of-fold probabilities, float64 (N, K).
        votes: shares of the labels among the neighbours, float64 (N, K).
        scores: doubt, 0 to 1 (`doubt_scores`), (N,).
        supported: whether the neighbours support the predicted class, bool (N,): they count as it, or more of them have
            it than the label.
        by_prediction, by_neighbors: whether each estimate gives another class, bool (N,).
        joint: confident joint of the predictions, int (K, K): label, class.
        not_judged: rows with a label that the other folds lack, or without a neighbour of another group.
    """

    classes: list[str]
    rows: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    supported: np.ndarray
    probabilities: np.ndarray
    votes: np.ndarray
    scores: np.ndarray
    by_prediction: np.ndarray
    by_neighbors: np.ndarray
    joint: np.ndarray
    not_judged: list[int]

    @property
    def suspects(self) -> np.ndarray:
        """Whether both estimates give another class than the label, bool (N,)."""
        return self.by_prediction & self.by_neighbors

    def quality(self) -> dict[str, float | None]:
        """Return `balanced_accuracy` and macro `auroc` of the out-of-fold predictions, 0 to 1.

        Both are None if the judged images have fewer than two classes.
        """
        names = ("balanced_accuracy", "auroc")
        if len(np.unique(self.labels)) < 2:
            return dict.fromkeys(names)
        metrics = classification_metrics(self.labels, self.probabilities, self.classes)
        return {name: round(metrics[name], 4) for name in names}

    def warnings(self) -> list[str]:
        """Return a message if fewer than two classes were judged, or if the predictions are weak (`WEAK_AUROC`).

        Balanced accuracy is no criterion: with classes of unequal size the most probable class is often the largest
        one, although the probabilities rank the images well.
        """
        auroc = self.quality()["auroc"]
        if auroc is None:
            return [
                f"fewer than two classes could be judged, and {len(self.not_judged)} images were not: the images of a "
                "class must be of two groups or more; add images of further groups"
            ]
        if auroc >= WEAK_AUROC:
            return []
        return [
            f"the out-of-fold predictions are weak (macro AUROC {auroc:.2f}, below {WEAK_AUROC}): many suspects may be "
            "difficult images and not errors; look from the top of the ranking down. Many wrong labels or classes that "
            "look alike lower it too, not only the backbone"
        ]

    def ranked(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return an entry for each judged image, with the keys of `RANKED_COLUMNS`, the most doubtful first.

        The numbers belong to `label` and `predicted`. `suggested` is the predicted class, or None where the neighbours
        do not support it.

        Args:
            names: of all images.
        """
        suspects = self.suspects
        return [
            {
                "rank": rank + 1, "image": names[row], "label": self.classes[label],
                "predicted": self.classes[other],
                "suggested": self.classes[other] if self.supported[rank] else None, "suspect": bool(suspects[rank]),
                "doubt": round(float(self.scores[rank]), 4),
                "label_probability": round(float(self.probabilities[rank, label]), 4),
                "predicted_probability": round(float(self.probabilities[rank, other]), 4),
                "neighbors_with_label": round(float(self.votes[rank, label]), 4),
                "neighbors_with_predicted": round(float(self.votes[rank, other]), 4),
            }
            for rank, (row, label, other) in enumerate(zip(self.rows, self.labels, self.predicted, strict=True))
        ]  # fmt: skip


def find_label_errors(
    features: np.ndarray, labels: Sequence[str | None], groups: Sequence[str], *, folds: int = 5, seed: int = 0
) -> LabelErrors:
    """Find the images whose label is probably wrong.

    Args:
        features: of all images, float (N, C).
        labels: class of each image; images without one are left out.
        groups: group of each image, such as `Manifest.units`: the folds are by group, and neighbours are of others.
        folds: number of folds, stratified by class.
        seed: of the folds.

    Raises:
        UsageError: there are fewer than two classes, more than `MAX_CLASSES`, or fewer groups than folds.
    """
    known = np.array([row for row, label in enumerate(labels) if label is not None], int)
    names = sorted({str(labels[row]) for row in known})
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UsageError(
            f"the labels have {len(names)} values; label errors are searched among 2 to {MAX_CLASSES} classes"
        )
    targets = np.array([names.index(str(labels[row])) for row in known])
    units = np.unique([groups[row] for row in known], return_inverse=True)[1]
    parts = np.array(make_folds([groups[row] for row in known], [labels[row] for row in known], folds, seed))
    x = np.asarray(features[known], np.float32)
    probabilities, usable = out_of_fold_probabilities(x, targets, parts, len(names))
    votes = neighbor_votes(x, targets, units, len(names))
    usable &= votes.sum(axis=1) > 0
    y, p, v = targets[usable], probabilities[usable], votes[usable]
    counted = confident_classes(p, y)
    doubt = (doubt_scores(p, y) + doubt_scores(v, y)) / 2
    order = np.lexsort((np.arange(len(y)), -doubt))
    joint = np.zeros((len(names), len(names)), int)
    np.add.at(joint, (y[counted >= 0], counted[counted >= 0]), 1)
    by_prediction = (counted >= 0) & (counted != y)
    predicted = np.where(by_prediction, counted, _best_other(p, y))
    by_votes = confident_classes(v, y)
    every = np.arange(len(y))
    supported = (by_votes == predicted) | (v[every, predicted] > v[every, y])
    return LabelErrors(
        names, known[usable][order], y[order], predicted[order], supported[order], p[order], v[order], doubt[order],
        by_prediction[order], ((by_votes >= 0) & (by_votes != y))[order], joint, known[~usable].tolist(),
    )  # fmt: skip


def out_of_fold_probabilities(
    features: np.ndarray, labels: np.ndarray, parts: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities of each image by a logistic regression that was fitted on the other folds.

    Args:
        features: (N, C).
        labels: int (N,).
        parts: fold of each image, int (N,).
        num_classes: K.

    Returns:
        float64 (N, K), and whether the label of each image occurs in the other folds, bool (N,).
    """
    tables = np.zeros((len(CS), len(labels), num_classes))
    usable = np.zeros(len(labels), bool)
    for part in np.unique(parts):
        inside = parts == part
        present, targets = np.unique(labels[~inside], return_inverse=True)
        usable[inside] = np.isin(labels[inside], present)
        if len(present) < 2:
            tables[:, inside, present[0]] = 1
            continue
        path = fit_logistic(features[~inside], targets, CS, quiet=True)
        for index in range(len(CS)):
            tables[index][np.ix_(inside, present)] = path.probabilities(features[inside], index)
    rows = np.flatnonzero(usable)
    losses = [-np.log(np.maximum(table[rows, labels[rows]], 1e-12)).sum() for table in tables]
    return tables[int(np.argmin(losses))], usable


def neighbor_votes(features: np.ndarray, labels: np.ndarray, units: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the shares of the labels among the `NEIGHBORS` nearest images of other groups, float64 (N, K).

    An image without such a neighbour has a row of zeros.
    """
    votes = np.zeros((len(labels), num_classes))
    k = NEIGHBORS + int(np.bincount(units).max())  # the images of the same group may be the nearest
    vectors, size = normalised(features), max(1, _MAX_PAIRS // k)
    for start in range(0, len(labels), size):
        _, indices = search_exactly(vectors[start : start + size], vectors, k)
        for row, candidates in enumerate(indices, start=start):
            chosen = candidates[units[candidates] != units[row]][:NEIGHBORS]
            np.add.at(votes[row], labels[chosen], 1 / max(len(chosen), 1))
    return votes


def confident_classes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the class as which each image counts in the confident joint, int (N,); -1 if no class is confident.

    Args:
        probabilities: (N, K), of a model that was not fitted on these images.
        labels: int (N,).

    Example:
        >>> confident_classes(np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9]]), np.array([0, 0, 1]))
        array([ 0, -1,  1])
    """
    num_classes = probabilities.shape[1]
    label_probability = probabilities[np.arange(len(labels)), labels]
    count = np.bincount(labels, minlength=num_classes)
    total = np.bincount(labels, label_probability, minlength=num_classes)
    thresholds = np.divide(total, count, out=np.full(num_classes, np.inf), where=count > 0)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    best = confident.argmax(axis=1)
    return np.where(confident.max(axis=1) >= 0, best, -1)


def doubt_scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return 0 (only the label is probable) to 1 (only another class is): half of 1 less the normalised margin."""
    rows = np.arange(len(labels))
    return np.asarray((1 - probabilities[rows, labels] + probabilities[rows, _best_other(probabilities, labels)]) / 2)


def _best_other(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the most probable class other than the label, int (N,)."""
    without_label = probabilities.copy()
    without_label[np.arange(len(labels)), labels] = -1
    return without_label.argmax(axis=1)
