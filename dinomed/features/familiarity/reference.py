"""The check whether an image is unlike the training images: the limit of its distance, and when it is switched off.

Distances of training images are measured from the images of other groups (patients, lesions or videos), as those of a
new patient are. An image is unlike the training images if its distance is larger than 99% of theirs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from torch import Tensor

from dinomed.errors import DinomedError
from dinomed.features.familiarity.distances import CombinedDistance, distance_from_tensors

QUANTILE = 0.99
MIN_GROUPS = 20  # a new image of the same kind is further away than all of 20 groups with probability 1/21, below 5%
MAX_IMAGES = 1000  # training images that are used; with more, the limit changes by less than one percentile
CONTROLS_DETECTED = 0.9


@dataclass(frozen=True)
class Familiarity:
    """How like the training images an image is.

    Attributes:
        distance: from the training images, 0 or more.
        percentile: share of the training images whose distance is smaller, 0 to 100.
        unlike: the distance is above the limit.
    """

    distance: float
    percentile: float
    unlike: bool


@dataclass(frozen=True)
class TrainingReference:
    """The distance from the training images, and that of training images of other groups.

    Attributes:
        distance: the distance, fitted to all of them; None with fewer than `MIN_GROUPS` groups.
        held_out: distances of the same images, each measured without its own group, float64 (N,), sorted.
        groups: number of different groups (patients, lesions, videos, or single images).
        block: block of the backbone whose tokens are compared.
        controls: share of the control images (inverted colours) that are above the limit, 0 to 1.
    """

    distance: CombinedDistance | None
    held_out: np.ndarray
    groups: int
    block: int
    controls: float

    @property
    def problem(self) -> str | None:
        """The reason why the check is not available, or None."""
        if self.groups < MIN_GROUPS:
            return f"the training images have {self.groups} groups, and at least {MIN_GROUPS} are needed"
        if self.controls < CONTROLS_DETECTED:
            return (
                f"the backbone recognises only {self.controls:.0%} of images with inverted colours as unlike the "
                "training images"
            )
        return None

    @property
    def limit(self) -> float:
        """The distance above which an image is unlike the training images."""
        return upper_limit(self.held_out)

    def judge(self, means: np.ndarray) -> list[Familiarity]:
        """Compare images with the training images.

        Args:
            means: mean patch tokens (B, C) of `block`.
        """
        assert self.distance is not None, "problem says that there is no check"
        distances = self.distance.measure(means)
        ranks = np.searchsorted(self.held_out, distances) / len(self.held_out)
        limit = self.limit
        return [
            Familiarity(float(distance), 100 * float(rank), bool(distance > limit))
            for distance, rank in zip(distances, ranks, strict=True)
        ]

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the reference as tensors."""
        return {
            **({} if self.distance is None else self.distance.to_tensors()),
            "held_out": torch.from_numpy(self.held_out),
            "counts": torch.tensor([self.groups, self.block]),
            "controls": torch.tensor([self.controls], dtype=torch.float32),
        }


def reference_from_tensors(tensors: Mapping[str, Tensor]) -> TrainingReference | None:
    """Return the reference from tensors: the inverse of `TrainingReference.to_tensors`; None if there are none.

    Raises:
        DinomedError: the tensors do not belong together, or a value is impossible.
    """
    if not tensors:
        return None
    of_distance = dict(tensors)
    try:
        held_out, counts, controls = (of_distance.pop(name) for name in ("held_out", "counts", "controls"))
    except KeyError as error:
        raise DinomedError(f"its features of training images are incomplete: {error}") from None
    if (counts.dtype, counts.shape, controls.dtype, controls.shape) != (torch.int64, (2,), torch.float32, (1,)):
        raise DinomedError("its numbers of training images and of controls have the wrong type or shape")
    (groups, block), (detected,) = counts.tolist(), controls.tolist()
    if not 0 <= detected <= 1:
        raise DinomedError("its numbers of training images and of controls are impossible")
    finite_numbers = held_out.dtype == torch.float64 and held_out.ndim == 1 and bool(held_out.isfinite().all())
    if not finite_numbers or (held_out < 0).any() or (held_out.diff() < 0).any():
        raise DinomedError("its distances of training images are not sorted numbers of 0 or more")
    distances = held_out.numpy()
    distance = distance_from_tensors(of_distance) if of_distance else None
    if len(distances) != (0 if distance is None else len(distance.neighbors.vectors)):
        raise DinomedError("its distances of training images do not belong to its features of training images")
    few = len(distances) < MIN_GROUPS
    return TrainingReference(distance, distances, min(groups, MIN_GROUPS - 1) if few else groups, block, detected)


def upper_limit(held_out: np.ndarray) -> float:
    """Return the distance that a new image of the same kind exceeds with probability 1% at most, or 1 / (N + 1) if N
    is below 99, as far as images are exchangeable (split conformal prediction, Lei et al. 2018, section 2.2).

    Args:
        held_out: sorted distances (N,) of images, each measured without its own group.
    """
    count = len(held_out)
    return float(held_out[min(ceil((count + 1) * QUANTILE), count) - 1])
