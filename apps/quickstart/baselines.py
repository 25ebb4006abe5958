"""What a user could do without any of this, to compare with: no training, one line of thought."""

import numpy as np


def otsu_threshold(gray: np.ndarray) -> int:
    """The gray value (0-255) that splits the histogram into two classes of greatest variance between them.

    Values up to it are one class, those above it the other. Otsu 1979, "A threshold selection method from gray-level
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
    """The darker side of Otsu's threshold as the lesion: uint8 (H, W, 3) to uint8 (H, W) of 0 and 1."""
    gray = image.mean(axis=-1).round().astype(np.uint8)
    return (gray <= otsu_threshold(gray)).astype(np.uint8)
