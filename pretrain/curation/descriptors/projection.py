"""From what a picture looks like to a vector whose cosine says whether another is a copy of it.

Raw features change with everything that is done to a copy, and most where it means least. Two linear maps mend it:

* `fit_whitening`: principal components, each divided by a power of its spread (DINO, arXiv 2104.14294, section 4.2.2,
  copy detection: 0.5 of the variance). It knows how pictures differ, not what copying does.
* `fit_invariance`: the directions in which synthetic copies differ from their originals are shrunk, then the directions
  in which different pictures differ most are kept: linear discriminant analysis with every picture a class of its own.
  It needs no label and no weights, and finds far more copies.

Legend: N pictures, K copies of each, C raw values, D of the result.
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
        return int(self.matrix.shape[1])

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """float32 (N, C) -> float32 (N, D), rows of length 1.

        Raises:
            DinomedError: values that are not finite, or of another number.
        """
        if raw.shape[1] != len(self.mean):
            raise DinomedError(f"raw features of {raw.shape[1]} values for a projection of {len(self.mean)}")
        out = normalised((raw - self.mean) @ self.matrix, "descriptor of image")
        out[~out.any(axis=1), 0] = 1  # exactly the mean: any direction, but of length 1
        return out


def fit_whitening(raw: np.ndarray, dimension: int, power: float = 0.5) -> Projection:
    """Principal components of float (N, C), each divided by its variance to `power` (0.5: all of spread 1; 0: plain).

    Kept are at most `dimension`, and fewer where there are fewer pictures.
    """
    mean = raw.mean(axis=0)
    _, spread, components = np.linalg.svd((raw - mean).astype(np.float64), full_matrices=False)
    keep = _significant(spread, dimension)
    variance = spread[keep] ** 2 / max(len(raw) - 1, 1)
    return _projection(mean, (components[keep] / variance[:, None] ** power).T)


def fit_invariance(raw: np.ndarray, copies: np.ndarray, dimension: int, ridge: float = RIDGE) -> Projection:
    """What tells pictures apart and copying leaves alone.

    Args:
        raw: float (N, C), the originals; copies: (N, K, C), K of each.
        dimension: D, at most C. N pictures show N - 1 directions; where that is less, directions drawn at random from
            the rest are added, long enough to stand for all of it: with few pictures much of what differs is not seen.
        ridge: added to the variance of every direction, in shares of its mean: what few copies did not show may still
            happen.
    """
    assert copies.shape[0] == len(raw), (copies.shape, raw.shape)
    mean = raw.mean(axis=0)
    changes = (copies - raw[:, None]).reshape(-1, raw.shape[1])
    within = (changes.T @ changes).astype(np.float64) / max(len(changes), 1)
    size = len(within)
    within += (ridge * np.trace(within) / size + 1e-12) * np.eye(size)
    root = np.linalg.cholesky(within)
    spheres = solve_triangular(root, (raw - mean).astype(np.float64).T, lower=True)  # C, N: copies are round clouds
    directions, spread, _ = np.linalg.svd(spheres, full_matrices=False)
    keep = _significant(spread, dimension)
    basis = _filled(directions[:, keep], min(dimension, size))
    matrix = solve_triangular(root.T, basis, lower=False)
    return _projection(mean, matrix)


def _projection(mean: np.ndarray, matrix: np.ndarray) -> Projection:
    """In one layout of memory: in another, products are rounded otherwise."""
    return Projection(np.ascontiguousarray(mean, np.float32), np.ascontiguousarray(matrix, np.float32))


def _filled(basis: np.ndarray, dimension: int) -> np.ndarray:
    """Orthonormal columns (C, k), and random ones orthogonal to them until there are `dimension`."""
    size, have = basis.shape
    if have >= dimension:
        return basis
    more = np.random.default_rng(0).normal(size=(size, dimension - have))
    more, _ = np.linalg.qr(more - basis @ (basis.T @ more))
    return np.concatenate([basis, more * np.sqrt((size - have) / (dimension - have))], axis=1)


def _significant(spread: np.ndarray, dimension: int) -> slice:
    """The first `dimension` singular values, without those that are only rounding."""
    return slice(0, max(1, min(dimension, int((spread > 1e-6 * spread[0]).sum()))))
