"""Random windows of training images that are larger than what is looked at at once.

Prediction by windows (`dinomed.adapters.inference.dense`) sees an image at its own scale; so has training then. A share of the
windows is drawn around a pixel of something that the mask has, of each kind alike: elsewhere small lesions would hardly
ever be seen (nnU-Net, Isensee et al. 2021, does so with a third of each batch).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RandomWindows:
    """Squares of `side` px; an image with no longer side is given whole, as in prediction.

    Args:
        share: of the windows, those that hold something of the mask for certain, if it has anything (0 to 1).
        read: a row -> what is known of its pixels at the image's own size, uint8 (planes, H, W).
        marked: the same -> a mask of each kind of thing that there may be, (kinds, H, W).
        shrink: (planes, h, w) -> (planes, size, size), the size that the backbone sees.
        outside: what is known of the black that fills an image with a side shorter than the window.
    """

    side: int
    share: float
    read: Callable[[int], np.ndarray]
    marked: Callable[[np.ndarray], np.ndarray]
    shrink: Callable[[np.ndarray], np.ndarray]
    outside: int = 0

    def draw(self, image: np.ndarray, seed: int, turn: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        """An image (H, W, channels) as it was read -> its window (side, side, channels) and what is known of it at the
        size that the backbone sees; the same numbers give the same window."""
        targets = self.read(row)
        assert targets.shape[1:] == image.shape[:2], (targets.shape, image.shape)
        if max(image.shape[:2]) <= self.side:
            return image, self.shrink(targets)
        rng = np.random.default_rng([seed, turn, row, self.side])
        top, left = self.place(self.marked(targets), rng)
        down, right = (max(0, self.side - length) for length in image.shape[:2])
        image = np.pad(image[top : top + self.side, left : left + self.side], ((0, down), (0, right), (0, 0)))
        targets = targets[:, top : top + self.side, left : left + self.side]
        targets = np.pad(targets, ((0, 0), (0, down), (0, right)), constant_values=self.outside)
        return np.ascontiguousarray(image), self.shrink(np.ascontiguousarray(targets))

    def place(self, marked: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
        """Top and left of a window in an image of these marks (kinds, H, W)."""
        height, width = marked.shape[1:]
        ends = max(height - self.side, 0), max(width - self.side, 0)
        around = rng.random() < self.share
        kinds = [kind for kind in marked if kind.any()] if around else []
        if not kinds:
            return int(rng.integers(ends[0] + 1)), int(rng.integers(ends[1] + 1))
        kind = kinds[rng.integers(len(kinds))]
        counts = np.cumsum(np.count_nonzero(kind, axis=1))
        y = int(np.searchsorted(counts, rng.integers(counts[-1]), side="right"))
        x = int(rng.choice(np.flatnonzero(kind[y])))
        top, left = (
            int(rng.integers(max(0, at - self.side + 1), min(at, end) + 1)) for at, end in ((y, ends[0]), (x, ends[1]))
        )
        return top, left
