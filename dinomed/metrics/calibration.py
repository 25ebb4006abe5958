"""Calibration of probabilities: calibration error, Brier score, log loss, and temperature scaling.

Probabilities are (N, K) over exclusive classes, with rows of sum 1, or (N, L) of labels that do not exclude each other.
A column of nan is a class that the classifier does not know; its probability counts as 0.

Policy: an image whose class the classifier does not know counts as wrong in the calibration error and the Brier score;
its log loss would be infinite and is nan. Without images, all values are nan. An unknown label (nan) is left out of the
values of that label.
"""

from typing import Literal

import numpy as np
from scipy.optimize import minimize_scalar

BINS = 15
TEMPERATURES = (0.05, 20.0)
"""Range of temperatures that are tried. An optimum outside means that the classes of the validation data are
separated."""
_SMALLEST = 1e-12  # smallest probability in the log loss


def brier_scores(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Compute the Brier score of each image (Brier 1950), float64 (N,): the squared distance between the probabilities
    and the true class, summed over the classes, 0 to 2."""
    targets = np.eye(probabilities.shape[1])[labels]
    return np.square(np.nan_to_num(probabilities, nan=0.0) - targets).sum(axis=1)


def log_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Compute minus the logarithm of the probability of the true class of each image, in nats, float64 (N,)."""
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return -np.log(np.maximum(of_label, _SMALLEST))  # nan stays nan


def confidence_bins(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return the bin of each confidence, int64 (N,), as in Guo et al. 2017, section 2.

    The bins have equal width; each includes its upper limit but not its lower one. 0 is in the first bin.
    """
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def calibration_errors(
    confidence: np.ndarray, correct: np.ndarray, counts: np.ndarray | None = None, bins: int = BINS
) -> np.ndarray:
    """Compute the expected calibration error: the difference of mean confidence and accuracy in each bin, averaged with
    the number of images as weight.

    Args:
        confidence: float (N,), 0 to 1: probability of the predicted class, or of a label.
        correct: (N,) of 0 and 1: whether the prediction is right, or the label is present.
        counts: (R, N), how often each image counts in each resample; None counts each once.

    Returns:
        float64 (R,), 0 to 1; nan without images.
    """
    drawn = np.ones((1, len(confidence))) if counts is None else counts
    which = np.eye(bins)[confidence_bins(confidence, bins)]
    gaps = drawn @ (which * (confidence - correct)[:, None])
    total = drawn.sum(axis=1)
    return np.divide(np.abs(gaps).sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0)


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """Return the bins that hold images: `low`, `high`, `n`, mean `confidence`, `accuracy` (share of right
    predictions)."""
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
    logits: np.ndarray, labels: np.ndarray, kind: Literal["softmax", "sigmoid"] = "softmax"
) -> float | None:
    """Return the temperature T for which ``logits / T`` have the lowest log loss (Guo et al. 2017, section 4.2).

    It is over 1 where the classifier is overconfident. It does not change which class is the most probable.

    Args:
        logits: (N, K).
        labels: int (N,), or (N, K) of 0, 1 and nan (unknown) for a sigmoid.

    Returns:
        The temperature, or None without images or if all images have the same class.
    """
    logits = logits.astype(np.float64)
    if kind == "softmax":
        if len(set(labels.tolist())) < 2:
            return None
        rows = np.arange(len(labels))

        def loss(log_temperature: float) -> float:
            scaled = logits / np.exp(log_temperature)
            high = scaled.max(axis=1)
            sums = high + np.log(np.exp(scaled - high[:, None]).sum(axis=1))
            return float((sums - scaled[rows, labels]).mean())
    else:
        known = ~np.isnan(labels)
        values, targets = logits[known], labels[known]
        if len(set(targets.tolist())) < 2:
            return None

        def loss(log_temperature: float) -> float:
            scaled = values / np.exp(log_temperature)
            return float((np.logaddexp(0, scaled) - targets * scaled).mean())

    # The loss is convex in 1/T, so it has one minimum in log T.
    optimum = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(optimum.x))
