"""Operating points: sensitivity and specificity at a threshold that was chosen on the validation split.

An image is predicted positive at or above the threshold. Policy: sensitivity is nan without a positive image,
specificity without a negative one, precision without a positive prediction. Without images of both kinds no threshold
is chosen (None).
"""

from typing import Any

import numpy as np

from dinomed.metrics.ranking import Ranking


def youden_threshold(positive: np.ndarray, scores: np.ndarray) -> float | None:
    """Return the threshold with the largest sensitivity + specificity - 1 (Youden 1950); of equal ones the highest.

    It lies half-way between two scores, so that rounding does not change a prediction.

    >>> youden_threshold(np.array([False, True, True]), np.array([0.2, 0.6, 0.9]))
    0.4
    """
    if not 0 < positive.sum() < len(positive):
        return None
    ranking = Ranking(positive, scores)
    false_rate, true_rate = ranking.roc()
    return _between(ranking.thresholds, int(np.argmax(np.round(true_rate[1:] - false_rate[1:], 12))))


def _between(thresholds: np.ndarray, index: int) -> float:
    """Return the middle of a threshold and the next lower score, or the threshold if no number lies between."""
    here = float(thresholds[index])
    below = float(thresholds[index + 1]) if index + 1 < len(thresholds) else here
    middle = (here + below) / 2
    return middle if middle > below else here


def operating_point(positive: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, Any]:
    """Compute sensitivity, specificity and precision at a threshold.

    Returns:
        `threshold`; `sensitivity`, `specificity`, `precision` (0 to 1, or nan); `true_positives`, `false_positives`,
        `true_negatives`, `false_negatives` (counts of images).
    """
    positive, predicted = np.asarray(positive, bool), np.asarray(scores) >= threshold
    tp, fp = int((positive & predicted).sum()), int((~positive & predicted).sum())
    fn, tn = int((positive & ~predicted).sum()), int((~positive & ~predicted).sum())
    return {
        "threshold": float(threshold),
        "sensitivity": tp / (tp + fn) if tp + fn else float("nan"),
        "specificity": tn / (tn + fp) if tn + fp else float("nan"),
        "precision": tp / (tp + fp) if tp + fp else float("nan"),
        "true_positives": tp,
        "false_positives": fp,
        "true_negatives": tn,
        "false_negatives": fn,
    }
