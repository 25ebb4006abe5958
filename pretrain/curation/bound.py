"""An upper bound of the cosine that is cheaper than the cosine.

Rotated into its principal components, x has a head (the first h of them) and a tail, and by Cauchy and Schwarz
x.y <= x_head.y_head + |x_tail| |y_tail|: one product of h + 1 dimensions. Where features lie in few dimensions, nearly
all pairs are below a threshold by that alone. And where the processor multiplies bfloat16 several times as fast as
float32, the product is made in it. Only what is left is computed in full. Nothing is lost: both are bounds, and what
rounding may do to them is added.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from dinomed.pretrain.curation.vectors import GIB, LENGTH_TOLERANCE, as_tensor, blocks

SAMPLE = 2048
WIDTHS = (16, 32, 64, 128, 256)
# Used for choices that change the time only: in units of one multiply-add of a large float32 product, what it takes to
# compare one bound with the threshold, and to fetch and multiply one pair of rows (measured on x86 with AVX-512).
_LOOK, _FETCH, _FETCH_PER_DIMENSION = 18.0, 8_000.0, 45.0
_WORTH_IT = 1.5  # below it bfloat16 saves less than its wider margin costs


@dataclass(frozen=True)
class Bound:
    """How vectors of `dimension` values are shortened, and by how much their product then has to be below a threshold.

    Without a basis and in single precision it is the cosine itself.
    """

    dimension: int
    basis: np.ndarray | None = None  # float64 (D, h), orthonormal
    half: bool = False  # bfloat16

    @property
    def is_cosine(self) -> bool:
        return self.basis is None and not self.half

    @property
    def width(self) -> int:
        return self.dimension if self.basis is None else int(self.basis.shape[1]) + 1

    @property
    def row_bytes(self) -> int:
        """What `heads` holds for a row."""
        return 0 if self.is_cosine else self.width * (2 if self.half else 4)

    @property
    def pair_cost(self) -> float:
        """Of checking one surviving pair, where the same pair in a product of whole tiles costs `dimension`."""
        return _FETCH + _FETCH_PER_DIMENSION * self.dimension

    @property
    def margin(self) -> float:
        """How far below the true value a product of two heads may come out.

        A float32 sum of n terms: n units of rounding (Higham 2002, section 3.1). bfloat16 (8 bits) rounds both factors
        and the result, each by at most 2^-9 of vectors hardly longer than 1.
        """
        single = (self.width + 8) * 2.0**-24
        return (single + (3 * 2.0**-9 if self.half else 0.0)) * (1 + 4 * LENGTH_TOLERANCE)

    def heads(self, x: np.ndarray) -> torch.Tensor:
        """float32 (N, D) -> (N, width): the head, then the length of the tail; or `x` as it is, if nothing is cut."""
        if self.is_cosine:
            return as_tensor(x)
        out = torch.empty((len(x), self.width), dtype=torch.bfloat16 if self.half else torch.float32)
        for rows in blocks(len(x), x.shape[1] * 8):
            if self.basis is None:
                out[rows] = as_tensor(x[rows])
                continue
            wide = x[rows].astype(np.float64)
            head = wide @ self.basis
            tail = np.einsum("ij,ij->i", wide, wide) - np.einsum("ij,ij->i", head, head)
            out[rows, :-1] = torch.from_numpy(head)
            out[rows, -1] = torch.from_numpy(np.sqrt(np.maximum(tail, 0) + 1e-12))
        return out


def fit_bound(x: np.ndarray, y: np.ndarray | None, threshold: float, memory_gib: float) -> Bound:
    """The bound that promises the least work on a sample of pairs, of those whose heads fit in memory.

    Which one it is changes the time only. The sample is spread evenly: every worker arrives at the same.
    """
    first = x[_spread(len(x))]
    second = first if y is None else y[_spread(len(y))]
    rows, dimension = len(x) + (0 if y is None else len(y)), x.shape[1]
    both = (first if y is None else np.concatenate([first, second])).astype(np.float64)
    with threadpool_limits(1):  # several threads gain nothing here, and lose seconds where processors are shared
        vectors = np.linalg.eigh(both.T @ both)[1][:, ::-1]
    gain = half_gain()
    # bits of bfloat16 are in the order of integers above zero only
    halves = (False, True) if gain > _WORTH_IT and threshold > 0.01 else (False,)
    bases = [np.ascontiguousarray(vectors[:, :width]) for width in WIDTHS if width < dimension // 2]
    choices = [Bound(dimension, basis, half) for basis in (*bases, None) for half in halves]
    fitting = [bound for bound in choices if rows * bound.row_bytes <= memory_gib * GIB]
    return min(fitting, key=lambda bound: _work(bound, first[:: max(len(first) // 256, 1)], second, threshold, gain))


@lru_cache
def half_gain() -> float:
    """How many times as fast as in float32 this machine multiplies bfloat16 matrices (below 1 on most)."""
    x = torch.ones(1024, 256)
    seconds = []
    with one_thread_each():
        for kind in (torch.float32, torch.bfloat16):
            factor, out = x.to(kind), torch.empty(1024, 1024, dtype=kind)
            times = []
            for _ in range(4):
                began = time.thread_time()  # others on this machine do not count
                torch.mm(factor, factor.T, out=out)
                times.append(time.thread_time() - began)
            seconds.append(min(times))
    return seconds[0] / seconds[1]


@contextmanager
def one_thread_each() -> Iterator[None]:
    """torch's products take one thread, so that several can be made at a time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _spread(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, SAMPLE)).astype(np.int64))


def _work(bound: Bound, few: np.ndarray, many: np.ndarray, threshold: float, gain: float) -> float:
    """For one pair; what survives in a tile is checked one by one or, where that is less, by a product of the tile."""
    work = _LOOK + bound.width / (gain if bound.half else 1.0)
    if bound.is_cosine:
        return work
    product = bound.heads(few).float() @ bound.heads(many).float().T
    survivors = float((product > threshold - bound.margin).float().mean())
    return work + min(survivors * bound.pair_cost, bound.dimension)
