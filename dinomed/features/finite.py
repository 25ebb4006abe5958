"""Checks that a model gives finite values, and the error that names the images for which it does not.

A head on features of nan gives an empty mask or a probability of nan, which looks like an answer. Therefore features
and outputs are checked in each forward pass, and an image without finite values has no result.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from dinomed.errors import DinomedError

R = TypeVar("R")
CAUSE = "its weights are damaged, or its training has diverged"


class UnusableRowsError(DinomedError):
    """Some images of a batch have no result.

    Attributes:
        rows: indices of these images in the batch, at least one.
        reason: why such an image has no result.
    """

    rows: tuple[int, ...]
    reason: str

    def __init__(self, rows: Sequence[int], reason: str) -> None:
        self.rows, self.reason = tuple(rows), reason
        super().__init__(reason)


class NotFiniteError(UnusableRowsError):
    """A model gives values that are not finite for some images of a batch; `kind` names the values."""

    def __init__(self, rows: Sequence[int], kind: str, names: Sequence[str] | None = None) -> None:
        self.rows, self.kind = tuple(rows), kind
        self.reason = f"the model gives {kind} that are not finite (nan or infinite)"
        count = len(self.rows)
        first = "" if names is None else f"{names[self.rows[0]]}: "
        several = f"{count} images" if names is None else f"this and {count - 1} more images"
        more = f" for {several}" if count > 1 else ""
        DinomedError.__init__(self, f"{first}{self.reason}{more}; {CAUSE}")


def check_finite(kind: str, *values: Tensor) -> None:
    """Check the values of a batch.

    Args:
        kind: name of the values in the message, such as ``features``.
        values: tensors (B, ...), each checked as a whole first.

    Raises:
        NotFiniteError: a value is nan or infinite; the error names the rows.
    """
    if all(bool(torch.isfinite(value).all()) for value in values):
        return
    good = torch.stack([torch.isfinite(value).flatten(1).all(dim=1) for value in values]).all(dim=0)
    raise NotFiniteError((~good).nonzero().flatten().tolist(), kind)


@contextmanager
def naming(names: Sequence[str], start: int = 0) -> Iterator[None]:
    """Add the names of the images to a `NotFiniteError` of the body.

    Args:
        names: of all images; the batch of the body begins at `start`.
        start: number of images before this batch; it is added to the rows of the error.
    """
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError([start + row for row in error.rows], error.kind, names) from None


def compute_finite(compute: Callable[[list[int]], R], count: int) -> tuple[list[int], R | None, dict[int, str]]:
    """Compute the results of a batch, without the images for which the model gives no finite values.

    Args:
        compute: function of the rows to use; it raises an `UnusableRowsError` (`NotFiniteError` or another) before it
            writes anything, and is then called again without the rows of the error.
        count: number of images of the batch.

    Returns:
        The rows with results, the results (None if no row has one), and row -> reason of the others.
    """
    rows, reasons = list(range(count)), dict[int, str]()
    while rows:
        try:
            return rows, compute(rows), reasons
        except UnusableRowsError as error:
            reasons |= {rows[place]: error.reason for place in error.rows}
            rows = [row for row in rows if row not in reasons]
    return [], None, reasons
