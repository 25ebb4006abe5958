"""Depth errors against their definitions in float64, and the range that counts."""

import numpy as np
import pytest

from dinomed.metrics.depth import depth_errors, depth_metrics


def test_values_equal_their_definitions() -> None:
    rng = np.random.default_rng(0)
    target = rng.uniform(0.5, 10, (12, 9)).astype(np.float32)
    prediction = (target * rng.uniform(0.6, 1.7, target.shape)).astype(np.float32)
    errors = depth_errors(target, prediction)
    y, p = target.astype(np.float64), prediction.astype(np.float64)
    assert errors["rmse"] == pytest.approx(np.sqrt(((p - y) ** 2).mean()), rel=1e-12)
    assert errors["abs_rel"] == pytest.approx((abs(p - y) / y).mean(), rel=1e-12)
    for power in (1, 2, 3):
        inside = (p / y < 1.25**power) & (y / p < 1.25**power)
        assert errors[f"delta{power}"] == pytest.approx(inside.mean(), rel=1e-12)
    assert errors["pixels"] == target.size


def test_pixels_without_a_depth_or_beyond_the_range_do_not_count() -> None:
    target = np.array([[0.0, np.nan, 2.0, 50.0]])
    prediction = np.array([[9.0, np.nan, 30.0, 1.0]])
    errors = depth_errors(target, prediction, high=20.0)
    assert errors["pixels"] == 1
    assert errors["rmse"] == 18.0  # 30 is clipped to 20
    with pytest.raises(ValueError, match="not finite"):
        depth_errors(target, np.array([[1.0, 1.0, np.nan, 1.0]]))


def test_an_image_without_depth_is_counted_and_left_out_of_means() -> None:
    flat = np.ones((2, 2))
    metrics = depth_metrics([depth_errors(flat, flat), depth_errors(np.zeros((2, 2)), flat)])
    assert (metrics["n"], metrics["undefined"], metrics["rmse"], metrics["delta1"]) == (2, 1, 0.0, 1.0)
    assert np.isnan(depth_metrics([])["rmse"])
