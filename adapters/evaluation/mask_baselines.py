"""Baselines of segmentation without training: Otsu's threshold, and the mean mask of the training images."""

from collections.abc import Callable

import cv2
import numpy as np

from dinomed.adapters.tasks.segment.mask_schema import MaskSchema
from dinomed.adapters.tasks.segment.masks import Masks, dice_of_targets
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.pixels import read_row
from dinomed.io.prefetch import prefetch

Guess = Callable[[int, tuple[int, int]], np.ndarray]
"""Function from a row of a manifest and (height, width) to targets, uint8 (planes, height, width)."""


def otsu_mask(image: np.ndarray) -> np.ndarray:
    """Return the pixels on the dark side of Otsu's threshold: uint8 (H, W, 3) to uint8 (H, W) of 0 and 1.

    Otsu 1979, "A threshold selection method from gray-level histograms", equation 18.
    """
    gray = image.mean(axis=-1).round().astype(np.uint8)
    return np.asarray(cv2.threshold(gray, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)[1])


def mean_targets(masks: Masks, count: int, schema: MaskSchema) -> np.ndarray:
    """Return the most frequent value of each pixel over `count` masks, uint8 (planes, size, size).

    Of exclusive classes it is the most frequent class; each other class is where at least half of the masks have it.
    """
    total = np.zeros((len(schema.names), *[masks.reading.image_size] * 2))
    for start in range(0, count, 256):
        targets = masks.take(range(start, min(start + 256, count))).numpy()
        total += np.sum([schema.planes(planes) for planes in targets], axis=0, dtype=float)
    if schema.exclusive:
        return total.argmax(axis=0).astype(np.uint8)[None]
    return (total >= count / 2).astype(np.uint8)


def baseline_guesses(test: Manifest, masks: Masks, count: int, schema: MaskSchema) -> dict[str, Guess]:
    """Return the baselines that a kind of masks has, by name; `masks` are `count` masks of training images."""
    mean = mean_targets(masks, count, schema)

    def stretched(row: int, size: tuple[int, int]) -> np.ndarray:
        shape, box = (size[1], size[0]), masks.reading.box(size)
        content = mean[:, *box.slices]
        return np.stack([cv2.resize(plane, shape, interpolation=cv2.INTER_NEAREST_EXACT) for plane in content])

    guesses: dict[str, Guess] = {"mean mask": stretched}
    if schema.kind == "binary":
        guesses["Otsu's threshold"] = lambda row, size: otsu_mask(read_row(test, row))[None]
    return guesses


def score_baseline(guess: Guess, test: Manifest, schema: MaskSchema) -> np.ndarray:
    """Return the Dice of each test image at its own size, float64 (N,)."""

    def score(row: int) -> float:
        targets = schema.read(test, row)
        return dice_of_targets(guess(row, (targets.shape[1], targets.shape[2])), targets, schema)

    return np.array(list(prefetch(score, range(len(test)), None)))
