"""Whether a tool answers as dinomed does: on random images, by the largest difference."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dinomed.adapters.export.source import Source
from dinomed.errors import DinomedError, UsageError

TOLERANCE = 1e-4
"""Largest difference to the original, relative to the largest value (at least 1). Float32 sums in another order differ
by about 1e-6; what fails this is another computation."""
_TIMES, _LOOSEST = 10, 1e-2
Shape = tuple[int, int, int]


def compare(source: Source, tool: str, answer: Callable[[Tensor], Any], shapes: Sequence[Shape]) -> dict[str, Any]:
    """`answer` of preprocessed images against `Source.reference`, for each (count, height, width) in px.

    A head may magnify rounding (BatchNorm over channels that hardly vary does). Where `TOLERANCE` is exceeded, what
    float32 costs dinomed itself is measured in float64, and ten times that is allowed, 0.01 at most. Sizes below
    the backbone's own at which the head itself refuses are left out.

    Raises:
        DinomedError: the tool gives something else.
    """
    side, channels = source.preprocessing.image_size, source.preprocessing.channels
    generator, compared = torch.Generator().manual_seed(0), []
    worst, allowed = 0.0, TOLERANCE
    for count, height, width in shapes:
        pixels = torch.randn(count, channels, height, width, generator=generator)
        try:
            expected = source.reference(pixels)
        except UsageError:  # a decoder that halves so few patches until nothing is left
            if min(height, width) >= side:
                raise
            continue
        with torch.no_grad():
            given = answer(pixels)
        found = [given] if isinstance(given, Tensor) else [torch.as_tensor(one) for one in given]
        apart = difference(found, expected)
        if apart > TOLERANCE:
            rounding = difference(expected, source.doubled().reference(pixels.double()))
            allowed = max(allowed, min(_TIMES * rounding, _LOOSEST))
        if not apart <= allowed:
            raise DinomedError(
                f"{tool} gives other values for {source.title} than dinomed: they differ by {apart:.2g} (allowed: "
                f"{allowed:.2g}); nothing is written"
            )
        worst = max(worst, apart)
        compared.append((count, height, width))
    return {"compared_with": tool, "batches": compared, "largest_difference": worst, "tolerance": allowed}


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of any output, relative to its largest value (at least 1); nan of other shapes or nan."""
    if [one.shape for one in found] != [one.shape for one in expected]:
        return float("nan")
    parts = zip(found, expected, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1)).item() for a, b in parts)
