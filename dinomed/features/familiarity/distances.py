"""Distances of images from training images, by their mean patch tokens: k-NN, Mahalanobis, and both combined.

Which of the two recognises more images of another kind depends on the kind and on the backbone, and cannot be found
from images of one kind. Combined they miss little that one of them finds (measured in `docs/fairness.md`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dinomed.errors import DinomedError
from dinomed.features.neighbors import finite_rows, normalised

NEIGHBORS = 5
MIN_SCALE = 1e-6  # of a distance; images with equal features have distances of 0, but for rounding
_BLOCK = 256  # rows of a similarity matrix in memory
_RIDGE = 1e-12  # smallest variance of a direction, also relative to the largest: images with equal features have one
_MAX_FACTOR = 1.01 / _RIDGE**0.5  # an axis has no value above 1; 1%: rounding to float32


class Distance(Protocol):
    """A distance from training images."""

    def measure(self, means: np.ndarray) -> np.ndarray:
        """Return the distance of each image, float64 (B,).

        Args:
            means: mean patch tokens (B, C).

        Raises:
            DinomedError: a value is not finite.
        """
        ...


FitDistance = Callable[[np.ndarray], Distance]


@dataclass(frozen=True)
class NeighborDistance:
    """1 minus the mean cosine similarity to the `NEIGHBORS` nearest training images (Sun et al. 2022,
    "Out-of-Distribution Detection with Deep Nearest Neighbors").

    Attributes:
        vectors: mean patch tokens of the training images, of length 1, float16 (N, C), N at least `NEIGHBORS`.
    """

    vectors: np.ndarray

    def measure(self, means: np.ndarray) -> np.ndarray:
        vectors, wide = normalised(means, "image"), self.vectors.astype(np.float32)
        parts = [np.zeros(0)]
        for start in range(0, len(vectors), _BLOCK):
            similarities = vectors[start : start + _BLOCK] @ wide.T
            nearest = np.partition(similarities, -NEIGHBORS, axis=1)[:, -NEIGHBORS:]
            parts.append(1 - nearest.mean(axis=1, dtype=np.float64))
        return np.concatenate(parts).clip(0)


@dataclass(frozen=True)
class MahalanobisDistance:
    """Distance from the mean of the training images in units of their spread: Mahalanobis (Lee et al. 2018, "A Simple
    Unified Framework for Detecting Out-of-Distribution Samples", section 2.1, with one class).

    Attributes:
        mean: of the training images, float32 (C,).
        factor: whitening matrix, float32 (C, C): the distance is the length of ``(x - mean) @ factor``.
    """

    mean: np.ndarray
    factor: np.ndarray

    def measure(self, means: np.ndarray) -> np.ndarray:
        centred = finite_rows(means, "image").astype(np.float64) - self.mean
        return np.asarray(np.linalg.norm(centred @ self.factor.astype(np.float64), axis=1))


@dataclass(frozen=True)
class CombinedDistance:
    """The larger one of both distances, each divided by its limit for images of the same kind.

    Attributes:
        neighbors, mahalanobis: the distances.
        scales: their limits (`dinomed.features.familiarity.reference.upper_limit`), at least `MIN_SCALE`,
            float64 (2,).
    """

    neighbors: NeighborDistance
    mahalanobis: MahalanobisDistance
    scales: np.ndarray

    @property
    def channels(self) -> int:
        """Number of values of a mean patch token."""
        return len(self.mahalanobis.mean)

    def measure(self, means: np.ndarray) -> np.ndarray:
        first, second = self.scales
        return np.maximum(self.neighbors.measure(means) / first, self.mahalanobis.measure(means) / second)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return what the distance needs as tensors."""
        arrays = {
            "vectors": self.neighbors.vectors,
            "mean": self.mahalanobis.mean,
            "factor": self.mahalanobis.factor,
            "scales": self.scales,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def fit_neighbors(means: np.ndarray) -> NeighborDistance:
    """Fit the k-NN distance to mean patch tokens (N, C), N at least `NEIGHBORS`."""
    return NeighborDistance(normalised(means, "image").astype(np.float16))


def fit_mahalanobis(means: np.ndarray) -> MahalanobisDistance:
    """Fit the Mahalanobis distance to mean patch tokens (N, C), N at least 2.

    The covariance of few images of many values is singular. It is shrunk towards a multiple of the identity by the
    amount that minimises the expected squared error (Ledoit and Wolf 2004, "A well-conditioned estimator for
    large-dimensional covariance matrices"), which needs no setting and no further images.
    """
    from sklearn.covariance import ledoit_wolf

    wide = finite_rows(means, "image").astype(np.float64)
    covariance, _ = ledoit_wolf(wide)
    values, axes = np.linalg.eigh(covariance)  # in ascending order
    factor = axes / np.sqrt(np.maximum(values, _RIDGE * max(values[-1], 1)))
    return MahalanobisDistance(wide.mean(axis=0).astype(np.float32), np.ascontiguousarray(factor, np.float32))


def distance_from_tensors(tensors: Mapping[str, Tensor]) -> CombinedDistance:
    """Return the distance from tensors: the inverse of `CombinedDistance.to_tensors`.

    Raises:
        DinomedError: the tensors do not belong together, or a value is impossible.
    """
    kinds = {"vectors": torch.float16, "mean": torch.float32, "factor": torch.float32, "scales": torch.float64}
    if tensors.keys() != kinds.keys():
        raise DinomedError("its features of training images are incomplete")
    as_written = all(tensors[name].dtype == kind for name, kind in kinds.items())
    vectors_shape, mean_shape, *further_shapes = (tuple(tensors[name].shape) for name in kinds)
    together = len(mean_shape) == 1 and vectors_shape[1:] == mean_shape and further_shapes == [2 * mean_shape, (2,)]
    if not as_written or not together or vectors_shape[0] < NEIGHBORS:
        raise DinomedError("its features of training images do not belong together")
    vectors, mean, factor, scales = (tensors[name].numpy() for name in kinds)
    bounded = (np.abs(vectors) <= 1).all() and (np.abs(factor) <= _MAX_FACTOR).all()  # False for nan
    if not bounded or not np.isfinite(mean).all() or not np.isfinite(scales).all() or (scales < MIN_SCALE).any():
        raise DinomedError("its features of training images have impossible values")
    return CombinedDistance(NeighborDistance(vectors), MahalanobisDistance(mean, factor), scales)
