"""Logistic regression, compared with the definition of the optimum and with scikit-learn."""

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dinomed.adapters.heads.solved import logistic
from dinomed.adapters.heads.solved.logistic import fit_logistic


def data(classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(150) % classes
    centres = rng.normal(size=(classes, 7))
    features = (centres[labels] + rng.normal(size=(150, 7))) * 10.0 ** np.arange(-3, 4)  # very different scales
    return features.astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("newton", [True, False])
def test_the_gradient_vanishes_at_the_solution(classes: int, newton: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not newton:
        monkeypatch.setattr(logistic, "_MAX_NEWTON", 0)
    features, labels = data(classes)
    path = fit_logistic(features, labels, (0.01, 1.0))
    assert all(path.converged)
    x = (features.astype(np.float64) - path.shift) / path.scale
    for index, c in enumerate(path.cs):
        residual = path.probabilities(features, index) - np.eye(classes)[labels]
        weights = path.weights[index]
        if classes == 2:  # only the second row is penalised: the model has one weight vector
            residual, weights = residual[:, 1:], weights[1:]
        gradient = c * residual.T @ x + weights[:, :-1]
        scale = np.abs(c * np.abs(residual).T @ np.abs(x)).max()
        # the solvers stop at a gradient of 1e-6 of the mean loss; L-BFGS also when the loss stands still
        assert np.abs(gradient).max() < 1e-3 * scale
        assert np.abs(c * residual.sum(0)).max() < 1e-3 * scale  # intercepts carry no penalty


def test_probabilities_are_those_of_scikit_learn() -> None:
    features, labels = data(4)
    path = fit_logistic(features, labels, (1.0, 0.1))
    assert path.cs == (0.1, 1.0)
    new = data(4, seed=1)[0]
    for index, c in enumerate(path.cs):
        oracle = make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-8, max_iter=10_000))
        oracle.fit(features.astype(np.float64), labels)
        # two solvers, each stopping near the optimum
        assert path.probabilities(new, index) == pytest.approx(oracle.predict_proba(new.astype(np.float64)), abs=1e-4)


@pytest.mark.parametrize("newton", [True, False])
def test_few_examples_are_fitted_in_their_span_with_the_same_optimum(
    newton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not newton:
        monkeypatch.setattr(logistic, "_MAX_NEWTON", 0)
        monkeypatch.setattr(logistic, "_MAX_NEWTON_IN_SPAN", 0)
    rng, labels = np.random.default_rng(3), np.arange(12) % 3
    features = rng.normal(size=(12, 60)) + 2 * rng.normal(size=(3, 60))[labels]
    widths, fit = list[int](), LogisticRegression.fit

    def record(self: LogisticRegression, x: np.ndarray, *rest: Any, **options: Any) -> Any:
        widths.append(x.shape[1])
        return fit(self, x, *rest, **options)

    weights = rng.uniform(0.5, 2, 12)
    with monkeypatch.context() as patch:
        patch.setattr(LogisticRegression, "fit", record)
        path = fit_logistic(features, labels, (0.1, 10.0), weights)
    assert widths == [11, 11]  # standardised examples sum to zero
    scaler = StandardScaler().fit(features)
    new = rng.normal(size=(40, 60)) * 3
    for index, c in enumerate(path.cs):
        oracle = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-10)
        oracle.fit(scaler.transform(features), labels, sample_weight=weights)
        # The fit stops at a gradient of 1e-6 and the oracle at 1e-10; L-BFGS also stops when the loss stands still
        assert path.probabilities(new, index) == pytest.approx(
            oracle.predict_proba(scaler.transform(new)), abs=1e-5 if newton else 1e-3
        )


def test_few_examples_that_are_all_the_same_are_fitted() -> None:
    path = fit_logistic(np.ones((4, 30)), np.array([0, 1, 2, 0]), (1.0,))
    assert path.probabilities(np.ones((1, 30)), 0)[0] == pytest.approx([0.5, 0.25, 0.25], abs=1e-4)  # L-BFGS or Newton


def test_a_constant_feature_has_no_effect() -> None:
    features, labels = data(2)
    features[:, 0] = 3.0
    assert np.isfinite(fit_logistic(features, labels, (1.0,)).probabilities(features, 0)).all()


def test_a_class_for_each_image_is_fitted_without_a_warning_of_scikit_learn() -> None:
    features, _ = data(2)
    with warnings.catch_warnings(action="error"):
        path = fit_logistic(features[:30], np.arange(30), (0.1, 1.0), quiet=True)
    assert path.weights.shape == (2, 30, 8)
