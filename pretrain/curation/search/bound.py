"""An upper bound of the cosine that is cheaper than the cosine.

Rotated into its principal components, x has a head (the first h of them) and a tail, and by Cauchy and Schwarz
x.y <= x_head.y_head + |x_tail| |y_tail|: one product of h + 1 dimensions. Where features lie in few dimensions, nearly
all pairs are below a threshold by that alone. That product, or the whole one, may further be made in a coarser
precision, whose loss is measured. Only what is left is computed in full. Nothing is missed: both are bounds.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from dinomed.pretrain.curation.search.low_precision import (
    LONGEST,
    HalfProduct,
    Product,
    byte_product,
    fastest,
    gains,
    rounding,
)
from dinomed.pretrain.curation.search.vectors import GIB, blocks

WIDTHS = (16, 32, 64, 128, 256)
# Used for choices that change the time only: in multiply-adds of a large float32 product, what it takes to fetch and
# multiply one pair of rows (measured on x86 with AVX-512).
_FETCH, _FETCH_PER_DIMENSION = 8_000.0, 45.0


@dataclass(frozen=True)
class Heads:
    """Vectors shortened, (N, width), and the length of what a row of them lacks beside the tail, at most."""

    values: torch.Tensor
    error: float


@dataclass(frozen=True)
class Bound:
    """How vectors of `dimension` values are shortened and multiplied. By default they are not: it is the cosine."""

    dimension: int
    basis: np.ndarray | None = None  # float64 (D, h), orthonormal
    product: Product = field(default_factory=Product)

    @property
    def is_cosine(self) -> bool:
        return self.basis is None and self.product.kind == torch.float32

    @property
    def width(self) -> int:
        return self.dimension if self.basis is None else int(self.basis.shape[1]) + 1

    @property
    def row_bytes(self) -> int:
        """What `heads` holds for a row."""
        return 0 if self.is_cosine else self.width * self.product.kind.itemsize

    @property
    def pair_cost(self) -> float:
        """Of checking one surviving pair, where the same pair in a product of whole tiles costs `dimension`."""
        return _FETCH + _FETCH_PER_DIMENSION * self.dimension

    def heads(self, x: np.ndarray) -> Heads:
        """float32 (N, D) -> (N, width)."""
        if self.is_cosine:
            return Heads(*self.product.encode(x))
        values = torch.empty((len(x), self.width), dtype=self.product.kind)
        error = 0.0
        for rows in blocks(len(x), x.shape[1] * 8, 2**22):
            values[rows], lost = self.product.encode(shorten(x[rows], self.basis))
            error = max(error, lost)
        return Heads(values, error)

    def margin(self, x: Heads, y: Heads) -> float:
        """How far below the true value the product of two heads may come out."""
        lost = LONGEST * (x.error + y.error) + x.error * y.error
        return lost + self.product.result_error + rounding(self.width)


def shorten(x: np.ndarray, basis: np.ndarray | None) -> np.ndarray:
    """float32 (n, D) -> (n, h + 1): the components in the basis, then the length of what is left."""
    if basis is None:
        return x
    wide = x.astype(np.float64)
    head = wide @ basis
    tail = np.einsum("ij,ij->i", wide, wide) - np.einsum("ij,ij->i", head, head)
    return np.column_stack([head, np.sqrt(np.maximum(tail, 0) + 1e-12)]).astype(np.float32)


def fit_bound(x: np.ndarray, y: np.ndarray | None, threshold: float, memory_gib: float) -> Bound:
    """The bound that promises the least work on a sample of pairs, of those whose heads fit in memory.

    Which one it is changes the time only. The sample is spread evenly: every worker arrives at the same.
    """
    rows = len(x) + (0 if y is None else len(y))
    both = [x] if y is None else [x, y]
    # judged on other rows than it was made of: of these it would promise too much
    basis = np.concatenate([some[_spread(len(some), 2048, 0.0)] for some in both])
    few, many = x[_spread(len(x), 256, 0.25)], both[-1][_spread(len(both[-1]), 1024, 0.5)]
    with threadpool_limits(1):  # several threads gain nothing here, and lose seconds where processors are shared
        choices = [bound for bound in _choices(basis) if rows * bound.row_bytes <= memory_gib * GIB]
        return min(choices, key=lambda bound: _work(bound, few, many, threshold))


def _choices(sample: np.ndarray) -> list[Bound]:
    dimension = sample.shape[1]
    wide = sample.astype(np.float64)
    vectors = np.linalg.eigh(wide.T @ wide)[1][:, ::-1]
    bases = [None, *(np.ascontiguousarray(vectors[:, :width]) for width in WIDTHS if width < dimension // 2)]
    kind = fastest()
    if kind == torch.float32:
        return [Bound(dimension, basis) for basis in bases]
    coarse = [HalfProduct() if kind == torch.bfloat16 else byte_product(shorten(sample, basis)) for basis in bases]
    # the cosine itself remains for piles where nearly everything is above the threshold
    return [Bound(dimension), *map(Bound, [dimension] * len(bases), bases, coarse)]


def _spread(count: int, most: int, shift: float) -> np.ndarray:
    """Rows at even distances, the first after a part of that distance."""
    size = min(count, most)
    return ((np.arange(size) + shift) * count / size).astype(np.int64)


def _work(bound: Bound, few: np.ndarray, many: np.ndarray, threshold: float) -> float:
    """For one pair; what survives in a tile is checked one by one or, where that is less, by a product of the tile."""
    product = bound.product
    work = product.look + bound.width / gains().get(product.kind, 1.0)
    if bound.is_cosine:
        return work
    x, y = bound.heads(few), bound.heads(many)
    out = torch.empty(len(few), len(many), dtype=product.result)
    product.multiply(x.values, y.values, out)
    above = np.empty(out.numel(), bool)
    product.above(out.view(-1), threshold - bound.margin(x, y), above)
    return work + min(float(above.mean()) * bound.pair_cost, bound.dimension)
