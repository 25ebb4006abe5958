"""Sensitivity and specificity at a threshold that was chosen elsewhere, on validation.

An image is called positive at or above the threshold. Policy: sensitivity is nan without a positive, specificity
without a negative, precision where nothing is called positive; no threshold is chosen (None) without both.
"""

from typing import Any

import numpy as np

from dinomed.metrics.ranking import Ranking


def youden_threshold(positive: np.ndarray, scores: np.ndarray) -> float | None:
    """The threshold with the largest sensitivity + specificity - 1 (Youden 1950); of equals the highest.

    It lies half-way between two scores, so that rounding does not decide.

    >>> youden_threshold(np.array([False, True, True]), np.array([0.2, 0.6, 0.9]))
    0.4
    """
    if not 0 < positive.sum() < len(positive):
        return None
    ranking = Ranking(positive, scores)
    false_rate, true_rate = ranking.roc()
    return _between(ranking.thresholds, int(np.argmax(np.round(true_rate[1:] - false_rate[1:], 12))))


def _between(thresholds: np.ndarray, index: int) -> float:
    """Half-way from a threshold to the next lower score; the threshold itself where no number lies between."""
    here = float(thresholds[index])
    below = float(thresholds[index + 1]) if index + 1 < len(thresholds) else here
    middle = (here + below) / 2
    return middle if middle > below else here


def operating_point(positive: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, Any]:
    """What happens at a threshold.

    Returns:
        `threshold`; `sensitivity`, `specificity`, `precision` (0 to 1, or nan); `true_positives`, `false_positives`,
        `true_negatives`, `false_negatives` (counts of images).
    """
    positive, called = np.asarray(positive, bool), np.asarray(scores) >= threshold
    tp, fp = int((positive & called).sum()), int((~positive & called).sum())
    fn, tn = int((positive & ~called).sum()), int((~positive & ~called).sum())
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
