"""Calibration metrics against definitions in float64 and against constructed data."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss

from dinomed.metrics.calibration import (
    TEMPERATURES,
    brier_scores,
    calibration_errors,
    confidence_bins,
    fit_temperature,
    log_losses,
    reliability,
)


def sample(n: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are too sure by `temperature`, and labels drawn from what they should say."""
    rng = np.random.default_rng(seed)
    right = rng.normal(size=(n, 4)) * 2
    labels = np.array([rng.choice(4, p=row) for row in softmax(right, axis=1)])
    return right * temperature, labels


def test_the_calibration_error_equals_the_sum_over_bins_by_hand() -> None:
    confidence, correct = np.array([0.05, 0.2, 0.2, 0.9, 1.0]), np.array([0, 0, 1, 1, 0])
    # five bins, closed above: {0.05, 0.2, 0.2}, {0.9, 1.0}
    by_hand = abs(0.45 - 1) / 5 + abs(1.9 - 1) / 5
    assert calibration_errors(confidence, correct, bins=5)[0] == pytest.approx(by_hand, abs=1e-12)
    assert confidence_bins(np.array([0.0, 0.2, 0.2001, 1.0]), 5).tolist() == [0, 0, 1, 4]
    bins = reliability(confidence, correct, 5)
    assert [row["n"] for row in bins] == [3, 2]
    assert sum(row["n"] / 5 * abs(row["confidence"] - row["accuracy"]) for row in bins) == pytest.approx(by_hand)


def test_the_calibration_error_equals_a_loop_over_bins() -> None:
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(500), rng.random(500) < 0.5
    total = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    assert calibration_errors(confidence, correct)[0] == pytest.approx(total, abs=1e-12)


def test_a_known_temperature_is_recovered() -> None:
    logits, labels = sample(20_000, 2.5)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(2.5, rel=0.03)  # three deviations with 20,000 labels
    before, after = (softmax(logits / t, axis=1) for t in (1.0, temperature))
    assert log_loss(labels, after) < log_loss(labels, before)
    ece = [calibration_errors(p.max(1), p.argmax(1) == labels)[0] for p in (before, after)]
    assert ece[1] < 0.02 < ece[0]


def test_no_temperature_nearby_has_a_lower_loss() -> None:
    logits, labels = sample(300, 0.4, seed=1)
    temperature = fit_temperature(logits, labels)
    assert temperature is not None
    losses = [
        log_loss(labels, softmax(logits / t, axis=1)) for t in (temperature, temperature * 1.01, temperature * 0.99)
    ]
    assert losses[0] == min(losses)


def test_two_classes_equal_one_label() -> None:
    rng = np.random.default_rng(0)
    logit = 3 * rng.normal(size=(4000, 1))
    targets = (rng.random((4000, 1)) < 1 / (1 + np.exp(-logit / 3))).astype(float)
    both = fit_temperature(np.hstack([np.zeros_like(logit), logit]), targets[:, 0].astype(int))
    assert fit_temperature(logit, targets, "sigmoid") == pytest.approx(both, rel=1e-4)
    unknown = np.where(np.arange(4000)[:, None] < 2000, targets, np.nan)
    assert fit_temperature(logit, unknown, "sigmoid") == pytest.approx(
        fit_temperature(logit[:2000], targets[:2000], "sigmoid"), rel=1e-6
    )


def test_separated_logits_end_at_the_bound_and_one_class_has_no_temperature() -> None:
    logits = np.eye(2)[[0, 1, 0, 1]]
    assert fit_temperature(logits, np.array([0, 1, 0, 1])) == pytest.approx(TEMPERATURES[0], rel=1e-3)
    assert fit_temperature(logits, np.zeros(4, int)) is None
    assert fit_temperature(np.zeros((0, 2)), np.zeros(0, int)) is None
    assert fit_temperature(np.zeros((3, 1)), np.full((3, 1), np.nan), "sigmoid") is None


def test_an_unknown_class_counts_as_wrong_and_has_no_log_loss() -> None:
    probabilities = np.array([[0.7, 0.3, np.nan], [0.7, 0.3, np.nan]])
    labels = np.array([0, 2])
    assert brier_scores(labels, probabilities) == pytest.approx([0.18, 0.49 + 0.09 + 1])
    losses = log_losses(labels, probabilities)
    assert losses[0] == pytest.approx(-np.log(0.7))
    assert np.isnan(losses[1])
    assert np.isfinite(log_losses(np.array([1]), np.array([[1.0, 0.0]]))).all()
