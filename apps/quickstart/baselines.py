"""A baseline without training: Otsu's threshold as a segmenter."""

import numpy as np

from dinomed.datasets.manifest import Manifest
from dinomed.images.read import read_image, read_mask
from dinomed.metrics.segmentation import Overlap, overlap, segmentation_metrics
from dinomed.progress import track


def otsu_threshold(gray: np.ndarray) -> int:
    """Return the gray value (0 to 255) that maximises the variance between the two classes of the histogram.

    Values up to it are one class, larger values the other. Otsu 1979, "A threshold selection method from gray-level
    histograms", equation 18.

    >>> otsu_threshold(np.array([10, 10, 12, 200, 202], dtype=np.uint8)) in range(12, 200)
    True
    """
    counts = np.bincount(gray.ravel(), minlength=256).astype(np.float64)
    below = counts.cumsum()
    total, mean_below = below[-1], (counts * np.arange(256)).cumsum()
    above = total - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mean_below[-1] * below / total - mean_below) ** 2 / (below * above)
    return int(np.nan_to_num(between, nan=-1.0, posinf=-1.0).argmax())


def otsu_mask(image: np.ndarray) -> np.ndarray:
    """Return the pixels on the dark side of Otsu's threshold: uint8 (H, W, 3) to uint8 (H, W) of 0 and 1."""
    gray = image.mean(axis=-1).round().astype(np.uint8)
    return (gray <= otsu_threshold(gray)).astype(np.uint8)


def otsu_dice(images: Manifest) -> float:
    """Return the mean Dice of Otsu's threshold on the images that have a mask."""
    overlaps: list[Overlap] = []
    for row in track(range(len(images)), "Otsu's threshold"):
        if path := images.mask_path(row):
            image = read_image(images.path(row))
            overlaps.append(overlap(read_mask(path, size=(image.shape[0], image.shape[1])), otsu_mask(image)))
    return segmentation_metrics(overlaps)["dice"]
