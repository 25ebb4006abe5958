"""Masks for fitting: read, squashed to the training size, compared, and cut at the best threshold."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil, log2

import cv2
import numpy as np
import torch
from torch import Tensor

from dinomed.adapters.tasks.segment.mask_schema import BINARY, MaskSchema
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.io.prefetch import prefetch
from dinomed.log import logger
from dinomed.metrics.segmentation import DiceByThreshold
from dinomed.progress import bar

THRESHOLDS = tuple(percent / 100 for percent in range(5, 100, 5))


def load_mask(manifest: Manifest, index: int) -> np.ndarray:
    """The binary mask of an image at the image's own size, uint8 (H, W) of 0 and 1."""
    return BINARY.read(manifest, index)[0]


def shrink_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """To (size, size), as the image is squashed: the share of lesion in each new pixel, cut at half."""
    share = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    return (share >= 0.5).astype(np.uint8)


def shrink_targets(targets: np.ndarray, size: int, schema: MaskSchema) -> np.ndarray:
    """uint8 (planes, H, W) to (planes, size, size): of classes that exclude each other the one with the largest share
    of the new pixel, else each mask by itself."""
    if not schema.exclusive:
        return np.stack([shrink_mask(plane, size) for plane in targets])
    best, index = np.full((size, size), -1.0, np.float32), np.zeros((1, size, size), np.uint8)
    for k in np.unique(targets):
        share = cv2.resize((targets[0] == k).astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
        index[0][share > best] = k
        best = np.maximum(best, share)
    return index


class Masks:
    """All masks of a split at the training size, as few bits a pixel as there need be."""

    def __init__(self, manifest: Manifest, size: int, split: str, schema: MaskSchema = BINARY) -> None:
        self.size, self.exclusive = size, schema.exclusive
        self.bits = max(1, ceil(log2(len(schema.names)))) if schema.exclusive else len(schema.names)

        def load(index: int) -> np.ndarray:
            small = shrink_targets(schema.read(manifest, index), size, schema)
            if self.exclusive:
                small = (small[0] >> np.arange(self.bits, dtype=np.uint8)[:, None, None]) & 1
            return np.packbits(small, axis=-1)

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
            logger.warning(f"{told}: epochs and threshold are chosen by what is left empty alone")

    def take(self, indices: Sequence[int]) -> Tensor:
        """uint8 (n, planes, size, size); see `dinomed.adapters.tasks.segment.mask_schema`."""
        planes = np.unpackbits(self._packed[list(indices)], axis=-1, count=self.size)
        if self.exclusive:
            weights = (1 << np.arange(self.bits)).astype(np.uint8)[:, None, None]
            planes = (planes * weights).sum(axis=1, keepdims=True, dtype=np.uint8)
        return torch.from_numpy(planes)

    def digest(self) -> bytes:
        """SHA-256 of all of them."""
        return hashlib.sha256(self._packed.tobytes()).digest()


class WholeMasks:
    """Masks of a split at the images' own size, read anew each time they are wanted; once, here, to see that they can
    be, and that there is something in them."""

    def __init__(self, manifest: Manifest, split: str, schema: MaskSchema) -> None:
        self.manifest, self.schema = manifest, schema
        self.background = schema.codes.index(0) if schema.exclusive else 0
        self._digest = hashlib.sha256()
        something = False

        def look(index: int) -> tuple[bytes, bool]:
            targets = self.read(index)
            return hashlib.sha256(targets.tobytes()).digest(), bool((targets != self.background).any())

        with bar(f"masks of {split}", len(manifest)) as progress:
            for found, own in prefetch(look, range(len(manifest)), None):
                self._digest.update(found)
                something = something or own
                progress.advance()
        if not something:
            raise UsageError(f"every mask of {split} is empty: there is no lesion to learn; give masks that have one")

    def read(self, index: int) -> np.ndarray:
        """uint8 (planes, H, W)."""
        return self.schema.read(self.manifest, index)

    def marked(self, targets: np.ndarray) -> np.ndarray:
        """(planes, H, W) -> a mask of each class that metrics are about, (classes, H, W)."""
        return self.schema.planes(targets)[list(self.schema.reported)]

    def digest(self) -> bytes:
        """SHA-256 of all of them."""
        return self._digest.digest()


def dice(prediction: Tensor, targets: Tensor) -> Tensor:
    """Dice of each image (B,), 1 where both are empty, as in `dinomed.metrics.segmentation`; of several planes their
    mean."""
    hit, total = (prediction * targets).sum((2, 3)), prediction.sum((2, 3)) + targets.sum((2, 3))
    return torch.where(total > 0, 2 * hit / total.clamp_min(1), 1.0).mean(1)


def dice_of_logits(logits: Tensor, targets: Tensor, schema: MaskSchema) -> Tensor:
    """The mean Dice over the reported classes of each image (B,), of logits (B, classes, H, W) at the size of the targets
    (B, planes, H, W), cut at a probability of half or at the highest one."""
    if not schema.exclusive:
        return dice((logits > 0).to(logits), targets.to(logits))
    index = torch.tensor(schema.reported, device=logits.device).view(-1, 1, 1)
    return dice((logits.argmax(1, keepdim=True) == index).float(), (targets == index).float())


def dice_of_maps(maps: np.ndarray, targets: np.ndarray, schema: MaskSchema) -> float:
    """The same of the probabilities (classes, H, W) of one image."""
    logits = torch.from_numpy(maps)[None] - 0.5  # of the same sign, and of the same order
    return dice_of_logits(logits, torch.from_numpy(targets)[None], schema).item()


def choose_thresholds(
    manifest: Manifest, probabilities: Callable[[int, tuple[int, int]], np.ndarray], schema: MaskSchema
) -> tuple[list[float], float]:
    """For each class the threshold with the best mean Dice over the images at their own size, and the mean over the
    classes of that Dice.

    Args:
        probabilities: row of the manifest (asked for in order) and (height, width) -> float32 (classes, height, width).
    """
    scores = [DiceByThreshold(THRESHOLDS) for _ in schema.names]
    with torch.no_grad(), bar("choosing the threshold", len(manifest)) as progress:
        for i, targets in enumerate(prefetch(partial(schema.read, manifest), range(len(manifest)), None)):
            height, width = targets.shape[1:]
            for one, plane, probability in zip(scores, targets, probabilities(i, (height, width)), strict=True):
                one.add(plane, probability)
            progress.advance()
    best = [one.best() for one in scores]
    return [threshold for threshold, _ in best], float(np.mean([value for _, value in best]))
