"""Dice, IoU and HD95 against float64 and SciPy, and the policy for empty masks."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from dinomed.metrics.segmentation import DiceByThreshold, overlap, segmentation_metrics, tolerance_px


def blob(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    """A filled ellipse, somewhere."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    cy, cx = rng.uniform(0.3, 0.7, 2) * (height, width)
    ry, rx = rng.uniform(0.15, 0.3, 2) * (height, width)
    return (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1).astype(np.uint8)


def surface(mask: np.ndarray) -> np.ndarray:
    """Coordinates of the mask's pixels that touch the outside (a cross of neighbours)."""
    return np.argwhere(mask.astype(bool) & ~binary_erosion(mask.astype(bool)))


@pytest.mark.parametrize("seed", range(5))
def test_values_equal_their_definitions(seed: int) -> None:
    target, prediction = blob(seed), blob(seed + 100)
    pair = overlap(target, prediction)
    a, b = target.astype(np.float64), prediction.astype(np.float64)
    # float32 sums of fewer than 2**24 pixels are exact; one division is left to differ
    assert pair.dice == pytest.approx(2 * (a * b).sum() / (a.sum() + b.sum()), abs=1e-6)
    assert pair.iou == pytest.approx((a * b).sum() / np.maximum(a, b).sum(), abs=1e-6)
    distances = cdist(surface(target), surface(prediction))
    directed = np.percentile(distances.min(0), 95), np.percentile(distances.min(1), 95)
    assert pair.hd95_px == pytest.approx(max(directed), abs=1e-4)  # MONAI computes it in float32
    near = distances <= tolerance_px(target.shape)
    within = near.any(1).sum() + near.any(0).sum()
    assert pair.surface_dice == pytest.approx(within / sum(distances.shape), abs=1e-6)


def test_a_shift_by_three_pixels_has_an_hd95_of_three_pixels() -> None:
    target = np.zeros((30, 30), np.uint8)
    target[10:20, 5:15] = 1
    assert overlap(target, np.roll(target, 3, axis=1)).hd95_px == pytest.approx(3.0)
    assert overlap(target, target).hd95_px == 0.0


EMPTY, FULL = np.zeros((8, 8), np.uint8), np.ones((8, 8), np.uint8)


@pytest.mark.parametrize(
    ("target", "prediction", "dice"), [(EMPTY, EMPTY, 1.0), (EMPTY, FULL, 0.0), (FULL, EMPTY, 0.0), (FULL, FULL, 1.0)]
)
def test_empty_and_full_masks_follow_the_policy(target: np.ndarray, prediction: np.ndarray, dice: float) -> None:
    pair = overlap(target, prediction)
    assert (pair.dice, pair.iou, pair.surface_dice) == (dice, dice, dice)
    assert np.isnan(pair.hd95_px) == (target is EMPTY or prediction is EMPTY)


def test_undefined_values_are_counted_and_left_out_of_means() -> None:
    metrics = segmentation_metrics([overlap(EMPTY, EMPTY), overlap(FULL, EMPTY), overlap(FULL, FULL)])
    assert metrics["dice"] == pytest.approx(2 / 3)
    assert (metrics["hd95_px"], metrics["hd95_undefined"]) == (0.0, 2)
    assert (metrics["empty_targets"], metrics["empty_prediction"], metrics["n"]) == (1, 2, 3)
    nothing = segmentation_metrics([overlap(EMPTY, EMPTY)])
    assert np.isnan(nothing["hd95_px"])


def test_dice_by_threshold_equals_the_dice_at_each_threshold() -> None:
    thresholds = (0.2, 0.5, 0.8)
    rng = np.random.default_rng(0)
    scores = DiceByThreshold(thresholds)
    expected = []
    for seed in range(4):
        target = blob(seed) if seed else np.zeros((40, 56), np.uint8)
        probability = np.clip(0.6 * target + rng.normal(0.2, 0.2, target.shape), 0, 1).astype(np.float32)
        probability[0, :3] = thresholds  # a pixel at the threshold is inside
        scores.add(target, probability)
        expected.append([overlap(target, probability >= np.float32(t)).dice for t in thresholds])
    assert scores.dice == pytest.approx(np.mean(expected, axis=0), abs=1e-6)


def test_of_equal_thresholds_the_one_nearest_to_half_is_chosen() -> None:
    scores = DiceByThreshold((0.1, 0.4, 0.7, 0.9))
    for _ in range(2):
        scores.add(FULL, np.full((8, 8), 0.95, np.float32))
    assert scores.choose() == (0.4, 1.0)


@pytest.mark.parametrize(("count", "threshold"), [(1, 0.5), (4, 0.5), (400, 0.2)])
def test_a_threshold_far_from_half_needs_enough_images_to_show_that_it_is_better(count: int, threshold: float) -> None:
    """At 0.2 the Dice is better by 0.1 in six of ten images, and worse by 0.1 in four; at 0.8 it is always worse."""
    rng = np.random.default_rng(0)
    scores = DiceByThreshold((0.2, 0.5, 0.8))
    scores._values = [
        np.array([0.7 + sign * 0.1, 0.7, 0.5]) for sign in rng.permutation(np.resize([1, 1, -1, 1, -1], count))
    ]
    chosen, dice = scores.choose()
    assert chosen == threshold
    assert dice == pytest.approx(scores.dice[[0.2, 0.5, 0.8].index(threshold)])
