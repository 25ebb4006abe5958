"""Random windows of large training images, for segmenters that predict by windows.

Prediction by windows (`dinomed.adapters.inference.dense`) uses the scale of the image itself, so training must use it
too. A share of the windows is drawn around a pixel of a class of the mask, with the same probability for each class:
without this, windows would rarely contain small lesions (nnU-Net, Isensee et al. 2021, does so for a third of each
batch).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RandomWindows:
    """Square windows of `side` px. An image whose sides are not longer is used whole, as in prediction.

    Args:
        share: share of the windows that contain a pixel of a class of the mask, if the mask has any (0 to 1).
        read: function from a row to its targets at the size of the image, uint8 (planes, H, W).
        marked: function from these targets to a mask of each class, (classes, H, W).
        shrink: function from targets (planes, h, w) to the input size of the backbone, (planes, size, size).
        outside: target of the black padding of an image with a side shorter than the window.
    """

    side: int
    share: float
    read: Callable[[int], np.ndarray]
    marked: Callable[[np.ndarray], np.ndarray]
    shrink: Callable[[np.ndarray], np.ndarray]
    outside: int = 0

    def draw(self, image: np.ndarray, seed: int, pass_index: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a random window (side, side, channels) of an image (H, W, channels), and its targets at the input
        size.

        The window depends only on `seed`, `pass_index` and `row`.
        """
        targets = self.read(row)
        assert targets.shape[1:] == image.shape[:2], (targets.shape, image.shape)
        if max(image.shape[:2]) <= self.side:
            return image, self.shrink(targets)
        rng = np.random.default_rng([seed, pass_index, row, self.side])
        top, left = self.place(self.marked(targets), rng)
        down, right = (max(0, self.side - length) for length in image.shape[:2])
        image = np.pad(image[top : top + self.side, left : left + self.side], ((0, down), (0, right), (0, 0)))
        targets = targets[:, top : top + self.side, left : left + self.side]
        targets = np.pad(targets, ((0, 0), (0, down), (0, right)), constant_values=self.outside)
        return np.ascontiguousarray(image), self.shrink(np.ascontiguousarray(targets))

    def place(self, marked: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
        """Return top and left of a random window in an image with these class masks (classes, H, W)."""
        height, width = marked.shape[1:]
        ends = max(height - self.side, 0), max(width - self.side, 0)
        around = rng.random() < self.share
        masks = [mask for mask in marked if mask.any()] if around else []
        if not masks:
            return int(rng.integers(ends[0] + 1)), int(rng.integers(ends[1] + 1))
        mask = masks[rng.integers(len(masks))]
        counts = np.cumsum(np.count_nonzero(mask, axis=1))
        y = int(np.searchsorted(counts, rng.integers(counts[-1]), side="right"))
        x = int(rng.choice(np.flatnonzero(mask[y])))
        top, left = (
            int(rng.integers(max(0, at - self.side + 1), min(at, end) + 1)) for at, end in ((y, ends[0]), (x, ends[1]))
        )
        return top, left
