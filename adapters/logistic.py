"""Multinomial logistic regression with an L2 penalty, its strength chosen on validation.

Features are standardised by the training set: without it the penalty depends on the scale of each channel. The DINOv2
code tries 45 values of C, logspace(-6, 5); here every fourth of them, the powers of ten, each started from the one
before. C is the one of scikit-learn: large means a weak penalty.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from dinomed.progress import track

CS = tuple(10.0**power for power in range(-6, 6))
MAX_ITERATIONS = 500
_NEWTON = 3000  # parameters up to which Newton's method (a matrix of their square) is the faster and the exact one


@dataclass(frozen=True)
class LogisticPath:
    """The fits of a sequence of C: `weights` (C values, K, features + 1), the intercept last, for standardised
    features; `converged` says which reached the optimum within `MAX_ITERATIONS`."""

    cs: tuple[float, ...]
    weights: np.ndarray
    shift: np.ndarray
    scale: np.ndarray
    converged: tuple[bool, ...]

    def probabilities(self, features: np.ndarray, index: int) -> np.ndarray:
        """Float64 (N, K) by the fit of ``cs[index]``."""
        standard = (features.astype(np.float64) - self.shift) / self.scale
        weights = self.weights[index]
        logits = standard @ weights[:, :-1].T + weights[:, -1]
        logits -= logits.max(axis=1, keepdims=True)
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def fit_logistic(features: np.ndarray, labels: np.ndarray, cs: Sequence[float] = CS) -> LogisticPath:
    """Fit for each C, from the strongest penalty to the weakest.

    Args:
        features: (N, C); labels: int (N,), every class from 0 to K - 1 at least once.
    """
    shift, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 1e-6, scale, 1.0)
    standard = (features.astype(np.float64) - shift) / scale
    num_classes = int(labels.max()) + 1
    solver = "newton-cholesky" if (features.shape[1] + 1) * num_classes <= _NEWTON else "lbfgs"
    model = LogisticRegression(solver=solver, max_iter=MAX_ITERATIONS, tol=1e-6, warm_start=True)
    weights, converged = [], []
    with (
        warnings.catch_warnings(action="ignore", category=ConvergenceWarning),  # told in `converged`
        threadpool_limits(1),  # small products: two threads on a busy machine took five times as long
    ):
        for c in track(sorted(cs), "logistic regression"):
            model.set_params(C=c)
            model.fit(standard, labels)
            weights.append(np.column_stack([_rows(model.coef_, num_classes), _rows(model.intercept_, num_classes)]))
            converged.append(int(model.n_iter_[0]) < MAX_ITERATIONS)
    return LogisticPath(tuple(sorted(cs)), np.stack(weights), shift, scale, tuple(converged))


def _rows(values: np.ndarray, num_classes: int) -> np.ndarray:
    """One row a class; of two classes scikit-learn gives the row of the second only."""
    return values if len(values) == num_classes else np.concatenate([np.zeros_like(values), values])
