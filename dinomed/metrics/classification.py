"""Accuracy, balanced accuracy and AUROC, with one policy for classes that cannot be judged.

Policy: what is undefined is nan, is named, and is left out of means; it never counts as 0.
- AUROC of a class needs images with and without it, and a classifier that knows it. The macro AUROC (one against the
  rest) is the mean over the classes where it is defined.
- Balanced accuracy is the mean recall over the classes that occur. An image of a class that the classifier does not
  know counts as wrong, there and in the accuracy.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score


def classification_metrics(labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Metrics of N predictions over K classes.

    Args:
        labels: int (N,), indices into `classes`.
        probabilities: float (N, K); a column of nan for a class that the classifier does not know.
        classes: K names.

    Returns:
        `n`, `accuracy`, `balanced_accuracy`, `auroc` (all in 0 to 1, or nan), `per_class` (name -> `n`, `recall`,
        `auroc`), and `undefined_auroc`, the names left out of the macro AUROC.

    Raises:
        ValueError: a probability of a known class is not finite.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    assert probabilities.shape == (len(labels), len(classes)), (probabilities.shape, len(labels), len(classes))
    known = ~np.isnan(probabilities).all(axis=0) if len(labels) else np.ones(len(classes), bool)
    if not np.isfinite(probabilities[:, known]).all():
        raise ValueError("probabilities that are not finite")
    predicted = np.where(known, probabilities, -np.inf).argmax(axis=1)
    per_class = {}
    for index, name in enumerate(classes):
        positive = labels == index
        judged = known[index] and 0 < positive.sum() < len(labels)
        per_class[name] = {
            "n": int(positive.sum()),
            "recall": float((predicted[positive] == index).mean()) if positive.any() else float("nan"),
            "auroc": float(roc_auc_score(positive, probabilities[:, index])) if judged else float("nan"),
        }
    return {
        "n": len(labels),
        "accuracy": float((predicted == labels).mean()) if len(labels) else float("nan"),
        "balanced_accuracy": _mean([row["recall"] for row in per_class.values()]),
        "auroc": _mean([row["auroc"] for row in per_class.values()]),
        "per_class": per_class,
        "undefined_auroc": [name for name, row in per_class.items() if np.isnan(row["auroc"])],
    }


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
