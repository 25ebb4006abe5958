"""Masks for training: read, resized to the training size, compared with predictions, and used to choose thresholds."""

import hashlib
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from math import ceil, log2

import cv2
import numpy as np
import torch
from torch import Tensor

from dinomed.adapters.tasks.segment.mask_schema import MaskSchema
from dinomed.backbones.preprocessing import Preprocessing, pad_to_input
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.io.prefetch import prefetch
from dinomed.log import logger
from dinomed.metrics.segmentation import DiceByThreshold
from dinomed.progress import bar

THRESHOLDS = tuple(percent / 100 for percent in range(5, 100, 5))


def shrink_mask(mask: np.ndarray, reading: Preprocessing) -> np.ndarray:
    """Resize a mask as its image: 1 where at least half of the new pixel is in the mask, 0 in the padding."""
    box = reading.box(mask.shape)
    share = cv2.resize(mask.astype(np.float32), (box.width, box.height), interpolation=cv2.INTER_AREA)
    return pad_to_input((share >= 0.5).astype(np.uint8), box, reading.input_size(mask.shape), 0)


def shrink_targets(targets: np.ndarray, schema: MaskSchema, reading: Preprocessing) -> np.ndarray:
    """Resize targets, uint8 (planes, H, W), as their image; the padding of ``pad`` is background.

    Of exclusive classes each new pixel has the one with the largest share of it; other masks are resized separately.
    """
    if not schema.exclusive:
        return np.stack([shrink_mask(plane, reading) for plane in targets])
    box = reading.box(targets.shape[1:])
    best, index = np.full((box.height, box.width), -1.0, np.float32), np.zeros((1, box.height, box.width), np.uint8)
    for k in np.unique(targets):
        share = cv2.resize((targets[0] == k).astype(np.float32), (box.width, box.height), interpolation=cv2.INTER_AREA)
        index[0][share > best] = k
        best = np.maximum(best, share)
    return pad_to_input(index, box, reading.input_size(targets.shape[1:]), schema.background)


class Masks:
    """All masks of a split at the training size, with the smallest possible number of bits for each pixel."""

    def __init__(self, manifest: Manifest, reading: Preprocessing, split: str, schema: MaskSchema) -> None:
        self.reading, self.exclusive = reading, schema.exclusive
        self.bits = max(1, ceil(log2(len(schema.names)))) if schema.exclusive else len(schema.names)

        def load(index: int) -> tuple[tuple[np.ndarray, int], bool]:
            small = shrink_targets(schema.read(manifest, index), schema, reading)
            marked = bool((small != schema.background).any())
            if self.exclusive:
                small = (small[0] >> np.arange(self.bits, dtype=np.uint8)[:, None, None]) & 1
            return (np.packbits(small, axis=-1), small.shape[-1]), marked

        self._packed: list[tuple[np.ndarray, int]] = []  # bits (planes, height, bytes), and the width in px
        has_lesion = False
        with bar(f"masks of {split}", len(manifest)) as progress:
            for mask, marked in prefetch(load, range(len(manifest)), None):
                self._packed.append(mask)
                has_lesion = has_lesion or marked
                progress.advance()
        if not has_lesion:
            message = f"every mask of {split} is empty at {reading.image_size} px"
            if split == "train":
                raise UsageError(f"{message}: there is no lesion to learn; give masks that have one")
            logger.warning(f"{message}: epoch and threshold are chosen only by false positives")

    def take(self, indices: Sequence[int]) -> Tensor:
        """Return the targets of some images of one size, uint8 (n, planes, height, width)."""
        chosen = [self._packed[index] for index in indices]
        planes = np.stack([np.unpackbits(bits, axis=-1, count=width) for bits, width in chosen])
        if self.exclusive:
            weights = (1 << np.arange(self.bits)).astype(np.uint8)[:, None, None]
            planes = (planes * weights).sum(axis=1, keepdims=True, dtype=np.uint8)
        return torch.from_numpy(planes)

    def of_rows(self, rows: Sequence[int]) -> "Masks":
        """Return the masks of some images."""
        chosen = copy(self)
        chosen._packed = [self._packed[row] for row in rows]
        return chosen

    def digest(self) -> bytes:
        """Return the SHA-256 of all masks."""
        return hashlib.sha256(b"".join(bits.tobytes() for bits, _ in self._packed)).digest()


class WholeMasks:
    """Masks of a split at the size of the images, read at each use.

    They are read once at the start, to check that they are readable and not all empty.
    """

    def __init__(self, manifest: Manifest, split: str, schema: MaskSchema) -> None:
        self.manifest, self.schema = manifest, schema
        self.background = schema.background
        self._digest = hashlib.sha256()
        has_lesion = False

        def check(index: int) -> tuple[bytes, bool]:
            targets = self.read(index)
            return hashlib.sha256(targets.tobytes()).digest(), bool((targets != self.background).any())

        with bar(f"masks of {split}", len(manifest)) as progress:
            for digest, marked in prefetch(check, range(len(manifest)), None):
                self._digest.update(digest)
                has_lesion = has_lesion or marked
                progress.advance()
        if not has_lesion:
            raise UsageError(f"every mask of {split} is empty: there is no lesion to learn; give masks that have one")

    def read(self, index: int) -> np.ndarray:
        """Return the targets of an image, uint8 (planes, H, W)."""
        return self.schema.read(self.manifest, index)

    def marked(self, targets: np.ndarray) -> np.ndarray:
        """Return a mask of each reported class, (classes, H, W), of targets (planes, H, W)."""
        return self.schema.planes(targets)[list(self.schema.reported)]

    def digest(self) -> bytes:
        """Return the SHA-256 of all masks."""
        return self._digest.digest()


def dice(prediction: Tensor, targets: Tensor) -> Tensor:
    """Compute the Dice of each image, (B,); with several planes their mean.

    It is 1 where both masks are empty, as in `dinomed.metrics.segmentation`.
    """
    hit, total = (prediction * targets).sum((2, 3)), prediction.sum((2, 3)) + targets.sum((2, 3))
    return torch.where(total > 0, 2 * hit / total.clamp_min(1), 1.0).mean(1)


def dice_of_logits(logits: Tensor, targets: Tensor, schema: MaskSchema) -> Tensor:
    """Compute the mean Dice over the reported classes of each image, (B,).

    Args:
        logits: (B, classes, H, W). A pixel has a class if its probability is above 0.5, of exclusive classes the
            largest.
        targets: (B, planes, H, W).
        schema: the classes.
    """
    if not schema.exclusive:
        return dice((logits > 0).to(logits), targets.to(logits))
    index = torch.tensor(schema.reported, device=logits.device).view(-1, 1, 1)
    return dice((logits.argmax(1, keepdim=True) == index).float(), (targets == index).float())


def dice_of_targets(predicted: np.ndarray, targets: np.ndarray, schema: MaskSchema) -> float:
    """Compute the mean Dice over the reported classes from decided and known targets, (planes, H, W)."""
    reported = list(schema.reported)
    masks = (
        torch.from_numpy(schema.planes(planes)[reported].astype(np.float64))[None] for planes in (predicted, targets)
    )
    return dice(*masks).item()


def dice_of_maps(maps: np.ndarray, targets: np.ndarray, schema: MaskSchema) -> float:
    """Compute the same from the probabilities (classes, H, W) of one image."""
    logits = torch.from_numpy(maps)[None] - 0.5  # the same signs and the same order as the logits
    return dice_of_logits(logits, torch.from_numpy(targets)[None], schema).item()


def choose_thresholds(
    manifest: Manifest,
    probabilities: Callable[[int, tuple[int, int]], np.ndarray],
    schema: MaskSchema,
    fixed: float | None = None,
) -> tuple[list[float], float]:
    """Choose for each class a threshold by the mean Dice over the images, at their own size (`DiceByThreshold.choose`).

    Args:
        manifest: images with masks.
        probabilities: function of a row of the manifest (called in order) and (height, width) that returns float32
            (classes, height, width).
        schema: the classes.
        fixed: the threshold of all classes, one of `THRESHOLDS`; nothing is chosen then, only measured.

    Returns:
        The threshold of each class, and the mean of their Dice.
    """
    scores = [DiceByThreshold(THRESHOLDS) for _ in schema.names]
    with torch.no_grad(), bar("choosing the threshold", len(manifest)) as progress:
        for i, targets in enumerate(prefetch(partial(schema.read, manifest), range(len(manifest)), None)):
            height, width = targets.shape[1:]
            for score, plane, probability in zip(scores, targets, probabilities(i, (height, width)), strict=True):
                score.add(plane, probability)
            progress.advance()
    if fixed is not None:
        return [fixed] * len(scores), float(np.mean([score.dice[THRESHOLDS.index(fixed)] for score in scores]))
    chosen = [score.choose() for score in scores]
    return [threshold for threshold, _ in chosen], float(np.mean([value for _, value in chosen]))
