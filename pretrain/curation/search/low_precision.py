"""Matrix products of unit vectors in three precisions, each with what it may be wrong by.

The cosine of every pair is first looked at coarsely. Processors with AMX multiply bfloat16 several times as fast as
float32, those with VNNI bytes; on others both are slower. What is fastest here is measured, never assumed.
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
_WORTH_IT = 1.5  # below it a coarse product saves less than its margin costs


def rounding(terms: int) -> float:
    """Of a float32 product of unit vectors: of n terms it is wrong by n roundings at most (Higham 2002, 3.1)."""
    return (terms + 8) * 2.0**-24 * LONGEST**2


def length_of(difference: np.ndarray) -> float:
    """The greatest length of a row."""
    return float(np.sqrt(np.einsum("ij,ij->i", difference, difference).max()))


@dataclass(frozen=True)
class Product:
    """In float32: nothing is lost but rounding."""

    kind = torch.float32
    result = torch.float32
    unit = 1.0  # what a 1 in the result stands for
    result_error = 0.0  # by which the result may be wrong, beside the sum's rounding
    look = 20.0  # to compare one with the threshold, in multiply-adds of a large float32 product

    def encode(self, x: np.ndarray) -> tuple[torch.Tensor, float]:
        """float32 (n, w) -> what is multiplied, and the length of what a row of it lacks, at most."""
        return as_tensor(x), 0.0

    def multiply(self, x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
        """(m, w), (n, w) -> (m, n)."""
        torch.mm(x, y.T, out=out)

    def above(self, products: torch.Tensor, limit: float, out: np.ndarray) -> None:
        """Which of (n,) products exceed a limit (or equal it, where rounding it asks for that)."""
        np.greater(products.numpy(), np.float32(limit), out=out)


@dataclass(frozen=True)
class HalfProduct(Product):
    """In bfloat16: 8 bits of every value, and of the result."""

    kind = torch.bfloat16
    result = torch.bfloat16
    result_error = 2.0**-9 * LONGEST**2
    look = 10.0

    def encode(self, x: np.ndarray) -> tuple[torch.Tensor, float]:
        coarse = as_tensor(x).to(torch.bfloat16)
        return coarse, length_of(x - coarse.float().numpy())

    def above(self, products: torch.Tensor, limit: float, out: np.ndarray) -> None:
        # NumPy has no bfloat16. Above zero its bits are in the order of whole numbers; at or below, they are turned.
        least = torch.tensor(max(limit, 0.0)).to(torch.bfloat16)
        if limit > 0:
            np.greater_equal(products.view(torch.int16).numpy(), least.view(torch.int16).item(), out=out)
        else:
            np.greater(products.float().numpy(), np.float32(limit), out=out)


@dataclass(frozen=True)
class ByteProduct(Product):
    """In bytes, multiplied exactly. A rotation first spreads each row evenly over its values: one step fits all."""

    turn: np.ndarray  # float32 (w, w), orthonormal
    step: float

    kind = torch.int8
    result = torch.int32
    look = 28.0

    @property
    def unit(self) -> float:  # type: ignore[override]
        return self.step**2

    def encode(self, x: np.ndarray) -> tuple[torch.Tensor, float]:
        turned = x @ self.turn
        whole = np.clip(np.rint(turned / np.float32(self.step)), -127, 127)
        # the rotation is in float32: each of the values may be wrong by its rounding
        lost = length_of(turned - whole * np.float32(self.step)) + rounding(x.shape[1]) * x.shape[1] ** 0.5
        return torch.from_numpy(whole.astype(np.int8)), lost

    def multiply(self, x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
        torch._int_mm(x, y.T, out=out)

    def above(self, products: torch.Tensor, limit: float, out: np.ndarray) -> None:
        np.greater(products.numpy(), np.int32(np.floor(limit / self.unit)), out=out)


def byte_product(sample: np.ndarray) -> ByteProduct:
    """Its step fits float32 (n, w); what is larger elsewhere is cut off, and counted as lost."""
    width = sample.shape[1]
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0].astype(np.float32)
    return ByteProduct(turn, float(np.abs(sample @ turn).max()) * 1.05 / 127)


@lru_cache
def gains() -> dict[torch.dtype, float]:
    """How many times as fast as float32 this machine multiplies what is coarser; only what is right and worth it.

    Processors without instructions for bytes add up pairs of products in 16 bits, and cut off what is larger.
    """
    whole = torch.from_numpy(np.random.default_rng(0).choice([-127, -126, 126, 127], (1024, 512)).astype(np.int8))
    single, half = whole.float(), whole.bfloat16()
    # sums of 512 products of bytes are whole numbers below 2^24: float32 holds them exactly
    exact = single @ single.T
    found = {}
    with one_thread_each():
        seconds, _ = _measure(torch.mm, single, torch.float32)
        for kind, name, factor, result in (
            (torch.bfloat16, "mm", half, torch.bfloat16), (torch.int8, "_int_mm", whole, torch.int32)
        ):  # fmt: skip
            try:
                taken, product = _measure(getattr(torch, name), factor, result)
            except (RuntimeError, AttributeError):  # this build of torch has no such product
                continue
            error = (product.double() - exact.double()).abs()
            right = error <= (exact.abs() * 2.0**-8 if kind == torch.bfloat16 else 0)
            if bool(right.all()) and seconds / taken > _WORTH_IT:
                found[kind] = seconds / taken
    return found


def fastest() -> torch.dtype:
    """The kind of product to use here; bfloat16 before bytes unless these are much faster: it loses less."""
    found = gains()
    half, byte = found.get(torch.bfloat16, 0.0), found.get(torch.int8, 0.0)
    return torch.float32 if not found else torch.bfloat16 if half > 0.5 * byte else torch.int8


def _measure(multiply: Callable[..., Any], x: torch.Tensor, result: torch.dtype) -> tuple[float, torch.Tensor]:
    """Processor seconds of this thread, the least of some (others on this machine do not count), and x x^T."""
    out, times = torch.empty(len(x), len(x), dtype=result), []
    for _ in range(6):
        began = time.thread_time()
        multiply(x, x.T, out=out)
        times.append(time.thread_time() - began)
    return max(min(times), 1e-9), out


@contextmanager
def one_thread_each() -> Iterator[None]:
    """torch's products take one thread, so that several can be made at a time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
