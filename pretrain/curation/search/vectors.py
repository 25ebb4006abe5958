"""What every stage here takes: float32 (N, D), rows of length 1, in memory or mapped from a file, seen in blocks."""

from collections.abc import Iterator

import numpy as np
import torch

from dinomed.errors import DinomedError, UsageError

GIB = 2**30
BLOCK_BYTES = 64 * 2**20
# float32 keeps a length to 1e-7, a float16 store to 1e-3; more than that was never normalised
LENGTH_TOLERANCE = 2e-3


def check_vectors(x: np.ndarray, name: str = "vectors") -> np.ndarray:
    """`x` itself, if it is what the stages take.

    Raises:
        DinomedError: not a table of float32, empty, or a row that is not finite or not of length 1 (named).
    """
    if x.ndim != 2 or x.dtype != np.float32:
        raise DinomedError(f"{name}: expected float32 of shape (N, D), not {x.dtype} {tuple(x.shape)}")
    if not len(x) or not x.shape[1]:
        raise DinomedError(f"{name}: there are none")
    if not x.flags.c_contiguous:
        raise DinomedError(f"{name}: rows have to lie one after the other; pass numpy.ascontiguousarray of them")
    for rows in blocks(len(x), x.shape[1] * 4):
        lengths = np.sqrt(np.einsum("ij,ij->i", x[rows], x[rows]))
        bad = ~(np.abs(lengths - 1) <= LENGTH_TOLERANCE)  # so that nan is bad
        if bad.any():
            row = int(bad.argmax())
            if not np.isfinite(x[rows][row]).all():
                raise DinomedError(f"{name}: row {rows.start + row} holds values that are not finite; compute it again")
            raise DinomedError(
                f"{name}: row {rows.start + row} has length {lengths[row]:.3g}, not 1; "
                "normalise them (dinomed.features.neighbors.normalised)"
            )
    return x


def check_same_dimension(x: np.ndarray, y: np.ndarray) -> None:
    """Refuse vectors of two kinds."""
    if x.shape[1] != y.shape[1]:
        raise DinomedError(f"vectors of {x.shape[1]} values against others of {y.shape[1]}: use the same descriptor")


def check_threshold(threshold: float) -> float:
    """A cosine. Raises a `UsageError` outside [-1, 1]."""
    if not -1 <= threshold <= 1:
        raise UsageError(f"similarity threshold {threshold}: a cosine lies in [-1, 1]")
    return float(threshold)


def check_count(count: int, size: int, what: str, of: str) -> int:
    """A number of neighbours or clusters. Raises a `UsageError` if it is not in 1 .. `size`."""
    if not 1 <= count <= size:
        raise UsageError(f"{what} is {count}, and there are {size:,} {of}; give 1 to {size:,}")
    return int(count)


def blocks(count: int, bytes_each: int, limit: float = BLOCK_BYTES) -> Iterator[slice]:
    """Slices that cover 0 .. `count`, of at most `limit` bytes each (and at least one row)."""
    step = max(int(limit // max(bytes_each, 1)), 1)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def similarity_of(x: np.ndarray, y: np.ndarray, i: np.ndarray, j: np.ndarray, *, precise: bool = True) -> np.ndarray:
    """Cosine of `x[i[n]]` and `y[j[n]]`, float32 (n,).

    `precise`: summed in float64, so the same on every machine and however the work was cut; else in float32, in half
    the time, within 1e-6.
    """
    out = np.empty(len(i), np.float32)
    # small enough that the rows stay in the cache, and that the memory for them is not asked of the system each time
    for part in blocks(len(i), x.shape[1] * 4, 2**18):
        out[part] = np.einsum("ij,ij->i", x[i[part]], y[j[part]], dtype=np.float64 if precise else np.float32)
    return out


def as_tensor(x: np.ndarray) -> torch.Tensor:
    """Without a copy, unless the array is read-only (mapped from a file): torch has no tensors that are."""
    return torch.from_numpy(x if x.flags.writeable else x.copy())
