"""Matrix products of unit vectors in float32, bfloat16 and int8, each with an error bound.

The search first computes the cosine of every pair in low precision. Processors with AMX multiply bfloat16 several times
as fast as float32, processors with VNNI multiply int8 faster. On other processors both are slower than float32, so
the speeds are measured (`measure_speedups`).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from dinomed.pretrain.curation.search.vectors import LENGTH_TOLERANCE, as_tensor

LONGEST = 1 + LENGTH_TOLERANCE
_MIN_SPEEDUP = 1.5  # a smaller speedup saves less time than the larger error margin costs


def rounding_error(terms: int) -> float:
    """Return the largest error of a float32 product of unit vectors with `terms` values.

    Each term adds one rounding error (Higham 2002, section 3.1).
    """
    return (terms + 8) * 2.0**-24 * LONGEST**2


def max_row_length(x: np.ndarray) -> float:
    """Return the largest Euclidean length of a row of `x` (n, w)."""
    return float(np.sqrt(np.einsum("ij,ij->i", x, x).max()))


@dataclass(frozen=True)
class Product:
    """A product in float32. Its only error is rounding.

    Attributes:
        dtype: of the encoded vectors.
        result_dtype: of the products.
        unit: cosine that corresponds to a result of 1.
        result_error: largest error of storing a result as `result_dtype`; the rounding of the sum is not included.
        compare_cost: cost of comparing a result with the threshold, in multiply-adds of a large float32 product.
    """

    dtype = torch.float32
    result_dtype = torch.float32
    unit = 1.0
    result_error = 0.0
    compare_cost = 20.0

    def encode(self, x: np.ndarray) -> tuple[torch.Tensor, float]:
        """Convert float32 (n, w) to `dtype`.

        Returns:
            The encoded vectors (n, w), and the largest length of the difference between a row and its encoding.
        """
        return as_tensor(x), 0.0

    def multiply(self, x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
        """Write the products of encoded vectors (m, w) and (n, w) to `out` (m, n)."""
        torch.mm(x, y.T, out=out)

    def above(self, products: torch.Tensor, limit: float, out: np.ndarray) -> None:
        """Write to `out`, bool (n,), whether each of the products (n,) is above the cosine `limit`.

        If the limit is rounded to the dtype of the products, a product equal to the rounded limit counts as above.
        """
        np.greater(products.numpy(), np.float32(limit), out=out)


@dataclass(frozen=True)
class BFloat16Product(Product):
    """A product in bfloat16, which keeps 8 significant bits of each value and of each result."""

    dtype = torch.bfloat16
    result_dtype = torch.bfloat16
    result_error = 2.0**-9 * LONGEST**2
    compare_cost = 10.0

    def encode(self, x: np.ndarray) -> tuple[torch.Tensor, float]:
        rounded = as_tensor(x).to(torch.bfloat16)
        return rounded, max_row_length(x - rounded.float().numpy())

    def above(self, products: torch.Tensor, limit: float, out: np.ndarray) -> None:
        # NumPy has no bfloat16. The bits of positive bfloat16 values, read as int16, have the order of the values;
        # those of negative values have the reverse order.
        rounded_limit = torch.tensor(max(limit, 0.0)).to(torch.bfloat16)
        if limit > 0:
            np.greater_equal(products.view(torch.int16).numpy(), rounded_limit.view(torch.int16).item(), out=out)
        else:
            np.greater(products.float().numpy(), np.float32(limit), out=out)


@dataclass(frozen=True)
class Int8Product(Product):
    """A product in int8 with exact sums.

    Rows are first multiplied by a random rotation. Then all their values have a similar magnitude, and one quantisation
    step fits all of them.

    Attributes:
        rotation: float32 (w, w), orthonormal.
        step: quantisation step, the value that the int8 number 1 represents.
    """

    rotation: np.ndarray
    step: float

    dtype = torch.int8
    result_dtype = torch.int32
    compare_cost = 28.0

    @property
    def unit(self) -> float:  # type: ignore[override]
        return self.step**2

    def encode(self, x: np.ndarray) -> tuple[torch.Tensor, float]:
        rotated = x @ self.rotation
        steps = np.clip(np.rint(rotated / np.float32(self.step)), -127, 127)
        # the rotation is computed in float32, which adds a rounding error to each value
        error = max_row_length(rotated - steps * np.float32(self.step)) + rounding_error(x.shape[1]) * x.shape[1] ** 0.5
        return torch.from_numpy(steps.astype(np.int8)), error

    def multiply(self, x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
        torch._int_mm(x, y.T, out=out)

    def above(self, products: torch.Tensor, limit: float, out: np.ndarray) -> None:
        np.greater(products.numpy(), np.int32(np.floor(limit / self.unit)), out=out)


def fit_int8_product(sample: np.ndarray) -> Int8Product:
    """Choose the quantisation step from a sample, float32 (n, w).

    Larger values in other rows are clipped; the error that `encode` returns includes this.
    """
    width = sample.shape[1]
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0].astype(np.float32)
    return Int8Product(rotation, float(np.abs(sample @ rotation).max()) * 1.05 / 127)


@lru_cache
def measure_speedups() -> dict[torch.dtype, float]:
    """Measure the speedup of bfloat16 and int8 products over float32 products on this machine.

    A dtype is left out if its products are wrong or its speedup is not above `_MIN_SPEEDUP`. Products in int8 are wrong
    on processors without instructions for int8 products: these add pairs of products in 16 bits and clip larger sums.
    """
    int8_values = torch.from_numpy(np.random.default_rng(0).choice([-127, -126, 126, 127], (1024, 512)).astype(np.int8))
    float32_values, bfloat16_values = int8_values.float(), int8_values.bfloat16()
    # sums of 512 int8 products are integers below 2^24, which float32 represents exactly
    exact = float32_values @ float32_values.T
    speedups = {}
    with single_threaded_torch():
        float32_seconds, _ = _measure(torch.mm, float32_values, torch.float32)
        for dtype, name, factor, result_dtype in (
            (torch.bfloat16, "mm", bfloat16_values, torch.bfloat16), (torch.int8, "_int_mm", int8_values, torch.int32)
        ):  # fmt: skip
            try:
                seconds, product = _measure(getattr(torch, name), factor, result_dtype)
            except (RuntimeError, AttributeError):  # this build of torch has no such product
                continue
            error = (product.double() - exact.double()).abs()
            correct = error <= (exact.abs() * 2.0**-8 if dtype == torch.bfloat16 else 0)
            if bool(correct.all()) and float32_seconds / seconds > _MIN_SPEEDUP:
                speedups[dtype] = float32_seconds / seconds
    return speedups


def fastest_dtype() -> torch.dtype:
    """Return the dtype for the products of the search on this machine.

    bfloat16 has a smaller error than int8, so int8 is used only if it is at least twice as fast.
    """
    speedups = measure_speedups()
    bfloat16, int8 = speedups.get(torch.bfloat16, 0.0), speedups.get(torch.int8, 0.0)
    return torch.float32 if not speedups else torch.bfloat16 if bfloat16 > 0.5 * int8 else torch.int8


def _measure(multiply: Callable[..., Any], x: torch.Tensor, result_dtype: torch.dtype) -> tuple[float, torch.Tensor]:
    """Return the seconds of processor time for x x^T, and the product.

    The time is the minimum of six runs. Only the time of this thread counts, so other processes have no influence.
    """
    out, times = torch.empty(len(x), len(x), dtype=result_dtype), []
    for _ in range(6):
        began = time.thread_time()
        multiply(x, x.T, out=out)
        times.append(time.thread_time() - began)
    return max(min(times), 1e-9), out


@contextmanager
def single_threaded_torch() -> Iterator[None]:
    """Limit each product in torch to one thread, so that several threads can compute products at the same time."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
