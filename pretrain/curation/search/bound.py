"""An upper bound of the cosine that takes less time to compute than the cosine.

Rotated into its principal components, a vector x has a head (its first h components) and a tail (the others). By the
Cauchy-Schwarz inequality

    x.y <= x_head.y_head + |x_tail| |y_tail|,

which is a product of h + 1 values. Where the vectors lie in few dimensions, this bound is below the threshold for
nearly all pairs. The product, of the heads or of the whole vectors, may also be computed in low precision, with a known
error (`low_precision`). Only pairs whose bound is above the threshold are computed in full. No pair is missed, because
both steps are bounds.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from dinomed.pretrain.curation.search.low_precision import (
    LONGEST,
    BFloat16Product,
    Product,
    fastest_dtype,
    fit_int8_product,
    measure_speedups,
    rounding_error,
)
from dinomed.pretrain.curation.search.vectors import GIB, blocks

HEAD_WIDTHS = (16, 32, 64, 128, 256)
# Time to fetch and multiply one pair of rows, in multiply-adds of a large float32 product (measured on x86 with
# AVX-512). They decide between bounds that give the same pairs, so they change the time only.
_FETCH_COST, _FETCH_COST_PER_DIMENSION = 8_000.0, 45.0


@dataclass(frozen=True)
class ShortVectors:
    """Encoded heads of vectors, each followed by the length of its tail.

    Attributes:
        values: (N, width), of the dtype of the product.
        error: largest length of the difference between a row and its encoding.
    """

    values: torch.Tensor
    error: float


@dataclass(frozen=True)
class CosineBound:
    """A way to shorten vectors of `dimension` values and to multiply them. The default is the cosine itself.

    Attributes:
        basis: float64 (D, h), orthonormal columns: the principal components; None: vectors are not shortened.
    """

    dimension: int
    basis: np.ndarray | None = None
    product: Product = field(default_factory=Product)

    @property
    def is_cosine(self) -> bool:
        return self.basis is None and self.product.dtype == torch.float32

    @property
    def width(self) -> int:
        """Values of a shortened vector."""
        return self.dimension if self.basis is None else int(self.basis.shape[1]) + 1

    @property
    def row_bytes(self) -> int:
        """Memory of a shortened vector; 0 for the cosine, which uses the vectors themselves."""
        return 0 if self.is_cosine else self.width * self.product.dtype.itemsize

    @property
    def pair_cost(self) -> float:
        """Cost of the cosine of one pair, where a pair costs `dimension` in a product of a whole tile."""
        return _FETCH_COST + _FETCH_COST_PER_DIMENSION * self.dimension

    def shorten(self, x: np.ndarray) -> ShortVectors:
        """Shorten and encode float32 (N, D)."""
        if self.is_cosine:
            return ShortVectors(*self.product.encode(x))
        values = torch.empty((len(x), self.width), dtype=self.product.dtype)
        max_error = 0.0
        for rows in blocks(len(x), x.shape[1] * 8, 2**22):
            values[rows], error = self.product.encode(head_and_tail_length(x[rows], self.basis))
            max_error = max(max_error, error)
        return ShortVectors(values, max_error)

    def margin(self, x: ShortVectors, y: ShortVectors) -> float:
        """Return how far a product of two shortened vectors may be below the true bound."""
        encoding_error = LONGEST * (x.error + y.error) + x.error * y.error
        return encoding_error + self.product.result_error + rounding_error(self.width)


def head_and_tail_length(x: np.ndarray, basis: np.ndarray | None) -> np.ndarray:
    """Return float32 (n, h + 1) of float32 (n, D): the components in the basis, then the length of the remainder."""
    if basis is None:
        return x
    wide = x.astype(np.float64)
    head = wide @ basis
    tail = np.einsum("ij,ij->i", wide, wide) - np.einsum("ij,ij->i", head, head)
    return np.column_stack([head, np.sqrt(np.maximum(tail, 0) + 1e-12)]).astype(np.float32)


def fit_bound(x: np.ndarray, y: np.ndarray | None, threshold: float, memory_gib: float) -> CosineBound:
    """Choose the bound with the least estimated work on a sample of pairs.

    The choice changes the time of a search, not its answer. The sample is spread evenly over the rows, so every worker
    makes the same choice.

    Args:
        x: float32 (N, D), rows of length 1; y: (M, D), or None for pairs within `x`.
        memory_gib: limit for the shortened vectors.
    """
    rows = len(x) + (0 if y is None else len(y))
    sets = [x] if y is None else [x, y]
    # the bounds are judged on other rows than they are fitted to: on the fitted rows they would look too good
    fitting_rows = np.concatenate([vectors[_spread(len(vectors), 2048, 0.0)] for vectors in sets])
    test_x, test_y = x[_spread(len(x), 256, 0.25)], sets[-1][_spread(len(sets[-1]), 1024, 0.5)]
    # more threads gain nothing here, and lose seconds where other processes use the processors
    with threadpool_limits(1):
        bounds = [bound for bound in _possible_bounds(fitting_rows) if rows * bound.row_bytes <= memory_gib * GIB]
        return min(bounds, key=lambda bound: _estimate_work(bound, test_x, test_y, threshold))


def _possible_bounds(sample: np.ndarray) -> list[CosineBound]:
    dimension = sample.shape[1]
    wide = sample.astype(np.float64)
    components = np.linalg.eigh(wide.T @ wide)[1][:, ::-1]
    widths = [width for width in HEAD_WIDTHS if width < dimension // 2]
    bases = [None, *(np.ascontiguousarray(components[:, :width]) for width in widths)]
    dtype = fastest_dtype()
    if dtype == torch.float32:
        return [CosineBound(dimension, basis) for basis in bases]
    products = [
        BFloat16Product() if dtype == torch.bfloat16 else fit_int8_product(head_and_tail_length(sample, basis))
        for basis in bases
    ]
    # the cosine itself is the best choice where nearly all pairs are above the threshold
    return [CosineBound(dimension), *map(CosineBound, [dimension] * len(bases), bases, products)]


def _spread(count: int, max_rows: int, shift: float) -> np.ndarray:
    """Return rows at even distances. The first one comes after `shift` of that distance."""
    size = min(count, max_rows)
    return ((np.arange(size) + shift) * count / size).astype(np.int64)


def _estimate_work(bound: CosineBound, x: np.ndarray, y: np.ndarray, threshold: float) -> float:
    """Estimate the cost of one pair. The survivors of a tile are computed one by one or, where that costs less, by a
    product of the whole tile."""
    product = bound.product
    work = product.compare_cost + bound.width / measure_speedups().get(product.dtype, 1.0)
    if bound.is_cosine:
        return work
    short_x, short_y = bound.shorten(x), bound.shorten(y)
    out = torch.empty(len(x), len(y), dtype=product.result_dtype)
    product.multiply(short_x.values, short_y.values, out)
    above = np.empty(out.numel(), bool)
    product.above(out.view(-1), threshold - bound.margin(short_x, short_y), above)
    return work + min(float(above.mean()) * bound.pair_cost, bound.dimension)
