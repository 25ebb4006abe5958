"""Whether probabilities mean what they say: calibration error, Brier score, log loss, and temperature scaling.

Probabilities are (N, K) of one class each, rows of sum 1, or (N, L) of labels that do not exclude each other; a column
of nan is a class that the classifier does not know, which it gives 0.

Policy: of an image whose class is unknown to the classifier, calibration error and Brier score count it as the miss
that it is; its log loss would be infinite and is nan. Everything is nan for no images. A label that is not known (nan)
is left out of that label's values.
"""

from typing import Literal

import numpy as np
from scipy.optimize import minimize_scalar

BINS = 15
TEMPERATURES = (0.05, 20.0)
"""The range in which a temperature is looked for; beyond it validation has nothing to say (it is separated)."""
_SMALLEST = 1e-12  # a probability below counts as this in the log loss


def brier_scores(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Of each image, the squared distance to the truth summed over the classes, 0 to 2 (Brier 1950); float64 (N,)."""
    truth = np.eye(probabilities.shape[1])[labels]
    return np.square(np.nan_to_num(probabilities, nan=0.0) - truth).sum(axis=1)


def log_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Of each image, minus the log of the probability of its class, nats; float64 (N,)."""
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return -np.log(np.maximum(own, _SMALLEST))  # a nan stays one


def confidence_bins(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin of each confidence, int64 (N,): `bins` of equal width, each open below and closed above; 0 is in the
    first. As Guo et al. 2017, section 2."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def calibration_errors(
    confidence: np.ndarray, correct: np.ndarray, counts: np.ndarray | None = None, bins: int = BINS
) -> np.ndarray:
    """Expected calibration error: the gap between confidence and accuracy, averaged over the images by bin.

    Args:
        confidence: float (N,), 0 to 1: of the predicted class, or the probability of a label.
        correct: (N,) of 0 and 1: whether the prediction is right, or the label is there.
        counts: (R, N), how often each image counts in each resample; once where it is None.

    Returns:
        float64 (R,), 0 to 1; nan for no images.
    """
    drawn = np.ones((1, len(confidence))) if counts is None else counts
    which = np.eye(bins)[confidence_bins(confidence, bins)]
    gaps = drawn @ (which * (confidence - correct)[:, None])
    total = drawn.sum(axis=1)
    return np.divide(np.abs(gaps).sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0)


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """The bins that hold images: `low`, `high`, `n`, mean `confidence`, `accuracy` (the share that is right)."""
    which = confidence_bins(confidence, bins)
    return [
        {
            "low": index / bins,
            "high": (index + 1) / bins,
            "n": int((which == index).sum()),
            "confidence": float(confidence[which == index].mean()),
            "accuracy": float(correct[which == index].mean()),
        }
        for index in np.unique(which)
    ]


def fit_temperature(
    logits: np.ndarray, truth: np.ndarray, kind: Literal["softmax", "sigmoid"] = "softmax"
) -> float | None:
    """The T for which ``logits / T`` have the lowest log loss (Guo et al. 2017, section 4.2): over 1 where the
    classifier was too sure. One number cannot change which class comes first.

    Args:
        logits: (N, K). truth: int (N,), or (N, K) of 0, 1 and nan (not known) for a sigmoid.

    Returns:
        None where there is nothing to fit on: no images, or every image of one class.
    """
    logits = logits.astype(np.float64)
    if kind == "softmax":
        if len(set(truth.tolist())) < 2:
            return None
        rows = np.arange(len(truth))

        def loss(log_temperature: float) -> float:
            scaled = logits / np.exp(log_temperature)
            high = scaled.max(axis=1)
            sums = high + np.log(np.exp(scaled - high[:, None]).sum(axis=1))
            return float((sums - scaled[rows, truth]).mean())
    else:
        known = ~np.isnan(truth)
        values, targets = logits[known], truth[known]
        if len(set(targets.tolist())) < 2:
            return None

        def loss(log_temperature: float) -> float:
            scaled = values / np.exp(log_temperature)
            return float((np.logaddexp(0, scaled) - targets * scaled).mean())

    # Convex in 1/T, so one valley in log T.
    found = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
