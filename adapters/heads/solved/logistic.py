"""Logistic regression with an L2 penalty chosen on validation, for probes and as a head.

Features are standardised by the training set; without this, the penalty would depend on the scale of each channel. With
fewer examples than features, the fit runs in the span of the examples, which holds the optimum: the part of a weight
outside it does not change the predictions of training and adds to the penalty.

The DINOv2 code tries 45 values of C, logspace(-6, 5). Here every fourth value, the powers of ten, is tried, each
initialised with the solution of the value before. C is defined as in scikit-learn: a large C is a weak penalty.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from dinomed.adapters.adapter import ADAPTERS
from dinomed.adapters.heads.linear import LinearClassifier, LinearClassifierConfig
from dinomed.adapters.heads.solved.solve import (
    CHOSEN_BY,
    Examples,
    Solution,
    SolvedClassifier,
    auroc_of_logits,
    best_of,
)
from dinomed.features.compute import Features
from dinomed.progress import track

CS = tuple(10.0**power for power in range(-6, 6))
MAX_ITERATIONS = 500
_MAX_NEWTON = 3000  # largest number of parameters for which Newton's method is used; L-BFGS is less exact at large C
_MAX_NEWTON_IN_SPAN = 1000  # the same in the span of few examples: as fast as L-BFGS in all features


@dataclass(frozen=True)
class LogisticPath:
    """Fits for a sequence of C.

    Attributes:
        cs: values of C, ascending.
        weights: (values of C, K, features + 1) for standardised features; the intercept is last.
        shift, scale: mean and standard deviation of the features, (features,).
        converged: whether each fit reached the optimum within `MAX_ITERATIONS`.
    """

    cs: tuple[float, ...]
    weights: np.ndarray
    shift: np.ndarray
    scale: np.ndarray
    converged: tuple[bool, ...]

    def probabilities(self, features: np.ndarray, index: int) -> np.ndarray:
        """Return probabilities, float64 (N, K), of the fit of ``cs[index]``."""
        standard = (features.astype(np.float64) - self.shift) / self.scale
        weights = self.weights[index]
        logits = standard @ weights[:, :-1].T + weights[:, -1]
        logits -= logits.max(axis=1, keepdims=True)
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def fit_logistic(
    features: np.ndarray,
    labels: np.ndarray,
    cs: Sequence[float] = CS,
    weights_of: np.ndarray | None = None,
    standard_of: np.ndarray | None = None,
    quiet: bool = False,
) -> LogisticPath:
    """Fit for each C, from the strongest penalty to the weakest.

    Args:
        features: (N, C).
        labels: int (N,); every class from 0 to K - 1 occurs at least once.
        weights_of: weights of the examples, float (N,); None for equal weights.
        standard_of: features (M, C) whose mean and deviation are used to standardise; by default `features`.
        quiet: show no progress bar.
    """
    reference = features if standard_of is None else standard_of
    shift, scale = reference.mean(axis=0, dtype=np.float64), reference.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 1e-6, scale, 1.0)
    standard = (features.astype(np.float64) - shift) / scale
    num_classes = int(labels.max()) + 1
    basis = _span(standard)
    inside = standard if basis is None else standard @ basis.T
    newton = (features.shape[1] + 1) * num_classes <= _MAX_NEWTON or (
        basis is not None and (len(basis) + 1) * num_classes <= _MAX_NEWTON_IN_SPAN
    )
    solver = "newton-cholesky" if newton else "lbfgs"
    model = LogisticRegression(solver=solver, max_iter=MAX_ITERATIONS, tol=1e-6, warm_start=True)
    weights, converged = [], []
    with (
        # what did not converge is in `converged`; scikit-learn also warns of many classes, once for each C
        warnings.catch_warnings(action="ignore", category=UserWarning),
        threadpool_limits(1),  # products are small: two threads on a busy machine took five times as long
    ):
        for c in sorted(cs) if quiet else track(sorted(cs), "logistic regression"):
            model.set_params(C=c)
            model.fit(inside, labels, sample_weight=weights_of)
            slopes = model.coef_ if basis is None else model.coef_ @ basis
            weights.append(np.column_stack([_rows(slopes, num_classes), _rows(model.intercept_, num_classes)]))
            converged.append(int(model.n_iter_[0]) < MAX_ITERATIONS)
    return LogisticPath(tuple(sorted(cs)), np.stack(weights), shift, scale, tuple(converged))


def _span(standard: np.ndarray) -> np.ndarray | None:
    """Return orthonormal vectors (r, C) that span N examples (N, C), at least one; None if N is not below C."""
    if len(standard) >= standard.shape[1]:
        return None
    _, sizes, vectors = np.linalg.svd(standard, full_matrices=False)
    rank = int((sizes > sizes[0] * standard.shape[1] * np.finfo(np.float64).eps).sum())
    return vectors[: max(rank, 1)]


def _rows(values: np.ndarray, num_classes: int) -> np.ndarray:
    """Return one row for each class; for two classes scikit-learn returns only the row of the second."""
    return values if len(values) == num_classes else np.concatenate([np.zeros_like(values), values])


class LogisticConfig(LinearClassifierConfig):
    """Settings: `cs`, values of C from which the best on val is chosen."""

    name: str = "logistic"
    cs: tuple[float, ...] = Field(
        CS, min_length=1, description="values of C (the inverse of the L2 penalty); the best on val is used"
    )


@ADAPTERS.register("classify.logistic")
class LogisticClassifier(SolvedClassifier, LinearClassifier):
    """A linear classifier fitted to the optimum; for multi-label targets one regression a label, all with the same
    C."""

    Config = LogisticConfig

    def solve(self, train: Examples, val: Examples, weight: np.ndarray | None, seed: int) -> Solution:
        x, queries = (
            self._pool(Features(torch.from_numpy(part.cls), torch.from_numpy(part.mean))).numpy()
            for part in (train, val)
        )
        cs = sorted(self.config.cs)
        if train.multilabel:
            paths = [_one_label(x, train.targets[:, index], cs) for index in range(self.num_classes)]
            tables = [np.concatenate([path.weights[c] for path in paths]) for c in range(len(cs))]
        else:
            paths = [fit_logistic(x, train.targets, cs, None if weight is None else weight[train.targets])]
            tables = list(paths[0].weights)
        shift, scale = paths[0].shift, paths[0].scale
        standard = (queries - shift) / scale
        scores = [auroc_of_logits(val.targets, standard @ table[:, :-1].T + table[:, -1]) for table in tables]
        index, c = best_of(cs, scores)
        table = torch.from_numpy(tables[index]).float()
        with torch.no_grad():
            self.shift.copy_(torch.from_numpy(shift))
            self.scale.copy_(torch.from_numpy(1 / scale))
            self.linear.weight.copy_(table[:, :-1])
            self.linear.bias.copy_(table[:, -1])
        unfinished = [c for c, *done in zip(cs, *(path.converged for path in paths), strict=True) if not all(done)]
        tried = dict(zip(map(str, cs), scores, strict=True))
        return Solution(self, {"C": c, "chosen_by": CHOSEN_BY, "tried": tried, "not_converged": unfinished})


def _one_label(x: np.ndarray, targets: np.ndarray, cs: Sequence[float]) -> LogisticPath:
    """Fit one label on the examples where it is known; the logit is constant if the label has only one value."""
    known = ~np.isnan(targets)
    if len(set(targets[known])) == 2:
        path = fit_logistic(x[known], targets[known].astype(int), cs, standard_of=x)
        return LogisticPath(path.cs, path.weights[:, 1:] - path.weights[:, :1], path.shift, path.scale, path.converged)
    shift, scale = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    weights = np.zeros((len(cs), 1, x.shape[1] + 1))
    share = (np.nansum(targets) + 0.5) / (known.sum() + 1)
    weights[..., -1] = np.log(share / (1 - share))
    return LogisticPath(tuple(cs), weights, shift, np.where(scale > 1e-6, scale, 1.0), (True,) * len(cs))
