"""Matrix products of unit vectors in float32, bfloat16 and int8, each with a bound of its error.

The search first computes the cosine of every pair in low precision. Processors with AMX multiply bfloat16 several times
as fast as float32, processors with VNNI multiply bytes faster. On other processors both are slower, so the speeds are
measured (`measure_speedups`).
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
_MIN_SPEEDUP = 1.5  # a smaller speedup saves less time than the wider margin costs


def rounding_error(terms: int) -> float:
    """Return the largest error of a float32 product of unit vectors with `terms` values: one rounding for each term
    (Higham 2002, section 3.1)."""
    return (terms + 8) * 2.0**-24 * LONGEST**2


def max_row_length(x: np.ndarray) -> float:
    return float(np.sqrt(np.einsum("ij,ij->i", x, x).max()))


@dataclass(frozen=True)
class Product:
    """A product in float32. It has no error but rounding.

    Attributes:
        dtype: of the encoded vectors.
        result_dtype: of the products.
        unit: the cosine that a 1 in the result stands for.
        result_error: error of a result, without the rounding of its sum.
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
        """Write to `out`, bool (n,), which of the products (n,) are above the cosine `limit`. A product equal to the
        limit counts where the limit was rounded."""
        np.greater(products.numpy(), np.float32(limit), out=out)


@dataclass(frozen=True)
class BFloat16Product(Product):
    """A product in bfloat16, which keeps 8 bits of each value and of each result."""

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
    """A product in int8 with exact sums. A random rotation first spreads each row evenly over its values, so that one
    step suits all values.

    Attributes:
        rotation: float32 (w, w), orthonormal.
        step: value of one unit of int8.
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
        # the rotation is computed in float32: each of the values may have its rounding error
        error = max_row_length(rotated - steps * np.float32(self.step)) + rounding_error(x.shape[1]) * x.shape[1] ** 0.5
        return torch.from_numpy(steps.astype(np.int8)), error

    def multiply(self, x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
        torch._int_mm(x, y.T, out=out)

    def above(self, products: torch.Tensor, limit: float, out: np.ndarray) -> None:
        np.greater(products.numpy(), np.int32(np.floor(limit / self.unit)), out=out)


def fit_int8_product(sample: np.ndarray) -> Int8Product:
    """Choose the step for float32 (n, w). Larger values in other rows are clipped; `encode` counts that as error."""
    width = sample.shape[1]
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0].astype(np.float32)
    return Int8Product(rotation, float(np.abs(sample @ rotation).max()) * 1.05 / 127)


@lru_cache
def measure_speedups() -> dict[torch.dtype, float]:
    """Measure how many times as fast as float32 this machine multiplies bfloat16 and int8.

    A dtype is left out if its products are wrong or its speedup is below `_MIN_SPEEDUP`. Processors without
    instructions for bytes add pairs of products in 16 bits and clip larger sums, which is wrong.
    """
    whole = torch.from_numpy(np.random.default_rng(0).choice([-127, -126, 126, 127], (1024, 512)).astype(np.int8))
    single, half = whole.float(), whole.bfloat16()
    # sums of 512 products of bytes are whole numbers below 2^24, which float32 holds exactly
    exact = single @ single.T
    speedups = {}
    with single_threaded_torch():
        float32_seconds, _ = _measure(torch.mm, single, torch.float32)
        for dtype, name, factor, result_dtype in (
            (torch.bfloat16, "mm", half, torch.bfloat16), (torch.int8, "_int_mm", whole, torch.int32)
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
    """Return the dtype to multiply in on this machine. bfloat16 is preferred to int8 unless int8 is more than twice as
    fast, because bfloat16 has a smaller error."""
    speedups = measure_speedups()
    bfloat16, int8 = speedups.get(torch.bfloat16, 0.0), speedups.get(torch.int8, 0.0)
    return torch.float32 if not speedups else torch.bfloat16 if bfloat16 > 0.5 * int8 else torch.int8


def _measure(multiply: Callable[..., Any], x: torch.Tensor, result_dtype: torch.dtype) -> tuple[float, torch.Tensor]:
    """Return the processor seconds of x x^T and the product. The seconds are the least of six runs and of this thread
    only, so that other processes do not count."""
    out, times = torch.empty(len(x), len(x), dtype=result_dtype), []
    for _ in range(6):
        began = time.thread_time()
        multiply(x, x.T, out=out)
        times.append(time.thread_time() - began)
    return max(min(times), 1e-9), out


@contextmanager
def single_threaded_torch() -> Iterator[None]:
    """Limit torch's products to one thread each, so that several threads can compute products at once."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
