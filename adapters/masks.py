"""Masks for fitting: read, squashed to the training size, compared, and cut at the best threshold."""

from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor

from dinomed.adapters.predict import resize_probability
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.compute import prefetch
from dinomed.images.read import read_mask
from dinomed.metrics.segmentation import DiceByThreshold
from dinomed.progress import bar, warn

THRESHOLDS = tuple(percent / 100 for percent in range(5, 100, 5))


def load_mask(manifest: Manifest, index: int) -> np.ndarray:
    """The mask of an image at the image's own size, uint8 (H, W) of 0 and 1."""
    path = manifest.mask_path(index)
    assert path is not None
    size = (manifest.table["height"][index].as_py(), manifest.table["width"][index].as_py())
    return read_mask(path, size=size)


def shrink_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """To (size, size), as the image is squashed: the share of lesion in each new pixel, cut at half."""
    share = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    return (share >= 0.5).astype(np.uint8)


class Masks:
    """All masks of a split at the training size, one bit a pixel."""

    def __init__(self, manifest: Manifest, size: int, split: str) -> None:
        self.size = size

        def load(index: int) -> np.ndarray:
            return np.packbits(shrink_mask(load_mask(manifest, index), size), axis=-1)

        packed: list[np.ndarray] = []
        with bar(f"masks of {split}", len(manifest)) as progress:
            for one in prefetch(load, range(len(manifest)), None):
                packed.append(one)
                progress.advance()
        self._packed = np.stack(packed)
        if not self._packed.any():
            told = f"every mask of {split} is empty at {size} px"
            if split == "train":
                raise UsageError(f"{told}: there is no lesion to learn; give masks that have one")
            warn(f"{told}: epochs and threshold are chosen by what is left empty alone")

    def take(self, indices: Sequence[int]) -> Tensor:
        """uint8 (n, 1, size, size) of 0 and 1."""
        return torch.from_numpy(np.unpackbits(self._packed[list(indices)], axis=-1, count=self.size))[:, None]


def dice(prediction: Tensor, truth: Tensor) -> Tensor:
    """Dice of each image (B,), 1 where both are empty, as in `dinomed.metrics.segmentation`."""
    hit, total = (prediction * truth).sum((1, 2, 3)), prediction.sum((1, 2, 3)) + truth.sum((1, 2, 3))
    return torch.where(total > 0, 2 * hit / total.clamp_min(1), 1.0)


def choose_threshold(manifest: Manifest, logits: Callable[[Sequence[int]], Tensor]) -> tuple[float, float]:
    """The threshold with the best mean Dice over the images at their own size, and that Dice."""
    scores = DiceByThreshold(THRESHOLDS)
    with torch.no_grad(), bar("choosing the threshold", len(manifest)) as progress:
        truths = prefetch(partial(load_mask, manifest), range(len(manifest)), None)
        for i, truth in enumerate(truths):
            scores.add(truth, resize_probability(logits([i]), truth.shape))
            progress.advance()
    return scores.best()
