"""Lesion counts against a loop over components, and cases by hand."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dinomed.metrics.lesions import count_lesions, lesion_metrics


def label(mask: np.ndarray) -> np.ndarray:
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[1]


MASKS = arrays(bool, (7, 9))


@settings(max_examples=100, deadline=None)
@given(MASKS, MASKS, st.sampled_from([0.1, 0.5, 1.0]))
def test_counts_equal_a_loop_over_components(target: np.ndarray, prediction: np.ndarray, cover: float) -> None:
    lesions, pieces = label(target), label(prediction)
    num_found = sum(prediction[lesions == i].mean() >= cover for i in range(1, lesions.max() + 1))
    false = sum(not target[pieces == i].any() for i in range(1, pieces.max() + 1))
    counts = count_lesions(target, prediction, cover)
    assert (counts.found, counts.missed, counts.false) == (num_found, lesions.max() - num_found, false)


def test_one_found_one_missed_one_false_and_a_clear_image() -> None:
    target, prediction = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    target[2:6, 2:6] = target[12:16, 2:6] = 1
    prediction[2:4, 2:6] = prediction[5:6, 2:6] = 1  # one lesion in two pieces
    prediction[10:12, 14:18] = 1
    clear = np.zeros((20, 20), np.uint8)
    alarm = clear.copy()
    alarm[0, :4] = 1
    metrics = lesion_metrics(
        [count_lesions(target, prediction), count_lesions(clear, alarm), count_lesions(clear, clear)]
    )
    assert (metrics["lesions"], metrics["found"], metrics["missed"], metrics["false"]) == (2, 1, 1, 2)
    assert (metrics["sensitivity"], metrics["precision"]) == (0.5, pytest.approx(1 / 3))
    assert (metrics["clear_images"], metrics["clear_with_false"]) == (2, 1)
    assert metrics["clear_false_fraction"] == pytest.approx(4 / 400 / 2)
    assert metrics["false_per_image"] == pytest.approx(2 / 3)


def test_rates_without_lesions_are_undefined_and_not_zero() -> None:
    metrics = lesion_metrics([count_lesions(np.zeros((4, 4)), np.zeros((4, 4)))])
    assert np.isnan([metrics["sensitivity"], metrics["precision"]]).all()
    assert np.isnan(lesion_metrics([])["false_per_image"])
