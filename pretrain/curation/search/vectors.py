"""Unit vectors: checks, blocks of rows, and the cosine of pairs.

Every search and clustering takes float32 (N, D), rows of length 1, in memory or mapped from a file, and reads it in
blocks of rows.
"""

from collections.abc import Iterator

import numpy as np
import torch

from dinomed.errors import DinomedError, UsageError

GIB = 2**30
BLOCK_BYTES = 64 * 2**20
# float32 keeps a length to 1e-7, a float16 file to 1e-3; a larger error means that the rows were never normalised
LENGTH_TOLERANCE = 2e-3


def check_vectors(x: np.ndarray, name: str = "vectors") -> np.ndarray:
    """Return `x` if it is a non-empty table of unit vectors.

    Args:
        name: name of the vectors in the message.

    Raises:
        DinomedError: not float32 of two dimensions, empty, not contiguous, or a row that is not finite or not of
            length 1. The message names the row.
    """
    if x.ndim != 2 or x.dtype != np.float32:
        raise DinomedError(f"{name}: expected float32 of shape (N, D), not {x.dtype} {tuple(x.shape)}")
    if not len(x) or not x.shape[1]:
        raise DinomedError(f"{name}: the array is empty (shape {tuple(x.shape)}); pass at least one vector")
    if not x.flags.c_contiguous:
        raise DinomedError(f"{name}: the rows are not contiguous in memory; pass numpy.ascontiguousarray(x)")
    for rows in blocks(len(x), x.shape[1] * 4):
        lengths = np.sqrt(np.einsum("ij,ij->i", x[rows], x[rows]))
        bad = ~(np.abs(lengths - 1) <= LENGTH_TOLERANCE)  # written so that nan is bad
        if bad.any():
            row = int(bad.argmax())
            if not np.isfinite(x[rows][row]).all():
                raise DinomedError(f"{name}: row {rows.start + row} has nan or infinite values; compute it again")
            raise DinomedError(
                f"{name}: row {rows.start + row} has length {lengths[row]:.3g}, not 1; "
                "normalise the rows (dinomed.features.neighbors.normalised)"
            )
    return x


def check_same_dimension(x: np.ndarray, y: np.ndarray) -> None:
    """Raise `DinomedError` if the two sets of vectors have different dimensions."""
    if x.shape[1] != y.shape[1]:
        raise DinomedError(f"the vectors have dimensions {x.shape[1]} and {y.shape[1]}; use the same descriptor")


def check_threshold(threshold: float) -> float:
    """Return the cosine threshold. Raise `UsageError` if it is outside [-1, 1]."""
    if not -1 <= threshold <= 1:
        raise UsageError(f"the similarity threshold is {threshold}; give a cosine in [-1, 1]")
    return float(threshold)


def check_count(count: int, size: int, what: str, of: str) -> int:
    """Return a number of neighbours or clusters. Raise `UsageError` if it is not in 1 to `size`."""
    if not 1 <= count <= size:
        raise UsageError(f"{what} is {count}, and there are {size:,} {of}; give 1 to {size:,}")
    return int(count)


def check_part(part: tuple[int, int]) -> None:
    """Raise `UsageError` if `part` (n, of) is not one of the parts 0 to `of` - 1."""
    if not 0 <= part[0] < part[1]:
        raise UsageError(f"part {part[0]} of {part[1]} does not exist; parts are counted from 0")


def blocks(count: int, bytes_each: int, limit: float = BLOCK_BYTES) -> Iterator[slice]:
    """Yield slices that cover 0 to `count`, each of at most `limit` bytes and at least one row."""
    step = max(int(limit // max(bytes_each, 1)), 1)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def similarity_of(x: np.ndarray, y: np.ndarray, i: np.ndarray, j: np.ndarray, *, precise: bool = True) -> np.ndarray:
    """Compute the cosine of `x[i[n]]` and `y[j[n]]`, float32 (n,).

    Args:
        precise: sum in float64. The result is then the same on every machine and for every division of the work.
            Otherwise sum in float32, which takes half the time and is within 1e-6.
    """
    out = np.empty(len(i), np.float32)
    # blocks small enough that the rows stay in the processor's cache and their memory is reused
    for part in blocks(len(i), x.shape[1] * 4, 2**18):
        out[part] = np.einsum("ij,ij->i", x[i[part]], y[j[part]], dtype=np.float64 if precise else np.float32)
    return out


def as_tensor(x: np.ndarray) -> torch.Tensor:
    """Return `x` as a tensor. A read-only array (mapped from a file) is copied: torch has no read-only tensors."""
    return torch.from_numpy(x if x.flags.writeable else x.copy())
