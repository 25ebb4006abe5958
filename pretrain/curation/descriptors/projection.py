"""Projections from raw features to descriptors, whose cosine is high for near-duplicates.

Raw features change with every edit of a copy, mostly in directions without meaning. Two linear maps correct this:

* `fit_whitening`: principal components, each divided by a power of its variance (DINO, arXiv 2104.14294, section 4.2.2,
  copy detection: 0.5). It uses the differences between images, not the effect of copying.
* `fit_invariance`: the directions in which synthetic copies differ from their originals are reduced, and the directions
in
  which images differ most are kept: linear discriminant analysis with each image as a class. It needs no labels and no
  weights, and finds far added copies.

Shapes: N images, K copies of each, C raw values, D values of a descriptor.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from dinomed.errors import DinomedError
from dinomed.features.neighbors import normalised

RIDGE = 0.03


@dataclass(frozen=True)
class Projection:
    """Subtract `mean` float32 (C,), multiply by `matrix` float32 (C, D), divide by the length."""

    mean: np.ndarray
    matrix: np.ndarray

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.matrix.shape[1])

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """Project raw features, float32 (N, C), to descriptors, float32 (N, D), rows of length 1.

        Raises:
            DinomedError: a value is not finite, or C does not match.
        """
        if raw.shape[1] != len(self.mean):
            raise DinomedError(f"raw features have {raw.shape[1]} values, the projection expects {len(self.mean)}")
        out = normalised((raw - self.mean) @ self.matrix, "descriptor of image")
        out[~out.any(axis=1), 0] = 1  # exactly the mean: no direction, any unit vector will do
        return out


def fit_whitening(raw: np.ndarray, dimension: int, power: float = 0.5) -> Projection:
    """Fit principal components to raw features, float (N, C), each divided by its variance to the power `power`.

    Args:
        dimension: maximum number of components; there are fewer if there are fewer images.
        power: 0.5 gives all components unit variance, 0 leaves them as they are.
    """
    mean = raw.mean(axis=0)
    _, spread, components = np.linalg.svd((raw - mean).astype(np.float64), full_matrices=False)
    keep = _significant(spread, dimension)
    variance = spread[keep] ** 2 / max(len(raw) - 1, 1)
    return _projection(mean, (components[keep] / variance[:, None] ** power).T)


def fit_invariance(raw: np.ndarray, copies: np.ndarray, dimension: int, ridge: float = RIDGE) -> Projection:
    """Fit the directions in which images differ and copies do not.

    Args:
        raw: float (N, C), the originals.
        copies: float (N, K, C), K copies of each.
        dimension: D, at most C. N images span N - 1 directions. If D is larger, random orthogonal directions are added,
            scaled to represent the whole remaining space: few images do not show all differences.
        ridge: added to the variance of every direction, as a share of the mean variance, because few copies do not show
            every change.
    """
    assert copies.shape[0] == len(raw), (copies.shape, raw.shape)
    mean = raw.mean(axis=0)
    changes = (copies - raw[:, None]).reshape(-1, raw.shape[1])
    within = (changes.T @ changes).astype(np.float64) / max(len(changes), 1)
    size = len(within)
    within += (ridge * np.trace(within) / size + 1e-12) * np.eye(size)
    root = np.linalg.cholesky(within)
    spheres = solve_triangular(
        root, (raw - mean).astype(np.float64).T, lower=True
    )  # C, N: copies have unit variance in every direction
    directions, spread, _ = np.linalg.svd(spheres, full_matrices=False)
    keep = _significant(spread, dimension)
    basis = _filled(directions[:, keep], min(dimension, size))
    matrix = solve_triangular(root.T, basis, lower=False)
    return _projection(mean, matrix)


def _projection(mean: np.ndarray, matrix: np.ndarray) -> Projection:
    """Build a projection in a fixed memory layout: another layout rounds products differently."""
    return Projection(np.ascontiguousarray(mean, np.float32), np.ascontiguousarray(matrix, np.float32))


def _filled(basis: np.ndarray, dimension: int) -> np.ndarray:
    """Extend orthonormal columns (C, k) to `dimension` columns by random orthogonal ones."""
    size, count = basis.shape
    if count >= dimension:
        return basis
    added = np.random.default_rng(0).normal(size=(size, dimension - count))
    added, _ = np.linalg.qr(added - basis @ (basis.T @ added))
    return np.concatenate([basis, added * np.sqrt((size - count) / (dimension - count))], axis=1)


def _significant(spread: np.ndarray, dimension: int) -> slice:
    """Select the first `dimension` singular values, without those that are rounding errors."""
    return slice(0, max(1, min(dimension, int((spread > 1e-6 * spread[0]).sum()))))
