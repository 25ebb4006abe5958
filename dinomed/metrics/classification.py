"""Metrics of a classifier of exclusive classes: accuracy, balanced accuracy, AUROC, AUPRC, confusion, calibration.

Policy: an undefined value is nan, is named, and is left out of means; it never counts as 0.
- AUROC and AUPRC of a class need images with and without the class, and a classifier that knows it. The macro values
  (one class against the rest) are means over the classes for which they are defined.
- Balanced accuracy is the mean recall over the classes that occur. An image of a class that the classifier does not
  know counts as wrong in it, in the accuracy, the calibration error and the Brier score; its log loss is nan.
- Without images, all values are nan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dinomed.metrics.calibration import brier_scores, calibration_errors, log_losses
from dinomed.metrics.ranking import Ranking
from dinomed.metrics.ratios import divide, row_means


@dataclass(frozen=True)
class Predictions:
    """N predictions over K classes.

    Args:
        labels: int (N,), indices into `classes`.
        probabilities: float (N, K); a column is nan for a class that the classifier does not know.
        classes: K names.

    Raises:
        ValueError: the probability of a known class is not finite.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    classes: Sequence[str]

    def __post_init__(self) -> None:
        expected = (len(self.labels), len(self.classes))
        assert self.probabilities.shape == expected, (self.probabilities.shape, expected)
        if not np.isfinite(self.probabilities[:, self.known]).all():
            raise ValueError("probabilities that are not finite")

    @cached_property
    def known(self) -> np.ndarray:
        """Whether the classifier knows each class, bool (K,)."""
        if not len(self.labels):
            return np.ones(len(self.classes), bool)
        return ~np.isnan(self.probabilities).all(axis=0)

    @cached_property
    def predicted(self) -> np.ndarray:
        return np.where(self.known, self.probabilities, -np.inf).argmax(axis=1)

    @cached_property
    def confidence(self) -> np.ndarray:
        """Probability of the predicted class, float (N,)."""
        return np.where(self.known, self.probabilities, -np.inf).max(axis=1)

    @cached_property
    def correct(self) -> np.ndarray:
        return self.predicted == self.labels

    @cached_property
    def rankings(self) -> list[Ranking | None]:
        """Ranking of each class against the rest; None for a class that the classifier does not know."""
        return [
            Ranking(self.labels == index, self.probabilities[:, index]) if known else None
            for index, known in enumerate(self.known)
        ]

    @cached_property
    def losses(self) -> np.ndarray:
        """Log loss and Brier score of each image, float64 (N, 2)."""
        return np.stack([log_losses(self.labels, self.probabilities), brier_scores(self.labels, self.probabilities)], 1)

    def values(self, counts: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Compute the metrics of R resamples at once, each (R,) or, by class, (R, K); a statistic for the bootstrap.

        Args:
            counts: (R, N), how often each image was drawn; None counts each once, and R is 1.
        """
        drawn = np.ones((1, len(self.labels))) if counts is None else counts
        is_class = np.eye(len(self.classes))[self.labels]
        is_predicted = np.eye(len(self.classes))[self.predicted]
        total, positives, hits = drawn.sum(axis=1), drawn @ is_class, drawn @ (is_class * is_predicted)
        predicted = drawn @ is_predicted
        recall = divide(hits, positives)
        negatives = total[:, None] - positives
        undefined = (np.full(len(drawn), np.nan),) * 2
        ranked = [undefined if ranking is None else ranking.measures(counts) for ranking in self.rankings]
        auroc, auprc = (np.stack([pair[side] for pair in ranked], axis=1) for side in (0, 1))
        defined = ~np.isnan(self.losses)
        losses = divide(drawn @ np.where(defined, self.losses, 0.0), drawn @ defined)
        auprc = np.where(np.isnan(auroc), np.nan, auprc)
        return {
            "accuracy": divide(hits.sum(axis=1), total),
            "balanced_accuracy": row_means(recall),
            "auroc": row_means(auroc),
            "auprc": row_means(auprc),
            "ece": calibration_errors(self.confidence, self.correct, drawn),
            "nll": losses[:, 0],
            "brier": losses[:, 1],
            "class_recall": recall,
            "class_specificity": divide(negatives - (predicted - hits), negatives),
            "class_precision": divide(hits, predicted),
            "class_auroc": auroc,
            "class_auprc": auprc,
        }


PER_CLASS = ("recall", "specificity", "precision", "auroc", "auprc")


def classification_metrics(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Compute the metrics of N predictions over K classes; see `Predictions` for the arguments and errors.

    Returns:
        `n`; `accuracy`, `balanced_accuracy`, `auroc`, `auprc`, `ece` (15 bins, see `dinomed.metrics.calibration`), all
        in 0 to 1; `nll` (nats), `brier` (0 to 2); `per_class` (name -> `n`, and at the most probable class `recall`,
        `specificity`, `precision`; `auroc`, `auprc`); `confusion`, K x K counts, a row for each true class; and
        `undefined_auroc`, the names of the classes left out of the macro values.
    """
    predictions = Predictions(np.asarray(labels), np.asarray(probabilities), classes)
    values = {name: value[0] for name, value in predictions.values().items()}
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (predictions.labels, predictions.predicted), 1)
    per_class = {
        name: {"n": int(confusion[index].sum()), **{key: float(values[f"class_{key}"][index]) for key in PER_CLASS}}
        for index, name in enumerate(classes)
    }
    return {
        "n": len(predictions.labels),
        **{name: float(value) for name, value in values.items() if not name.startswith("class_")},
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "undefined_auroc": [name for name, row in per_class.items() if np.isnan(row["auroc"])],
    }
