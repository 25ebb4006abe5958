"""Comparison of an exported model with the original, on random images."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dinomed.adapters.export.source import ExportSource
from dinomed.errors import DinomedError, UsageError

TOLERANCE = 1e-4
"""Largest difference to the original, relative to the largest value (at least 1). Float32 sums in another order differ
by about 1e-6; a larger difference shows another computation."""
_ROUNDING_FACTOR, _MAX_TOLERANCE = 10, 1e-2
Shape = tuple[int, int, int]


def compare(
    source: ExportSource, tool: str, forward: Callable[[Tensor], Any], shapes: Sequence[Shape]
) -> dict[str, Any]:
    """Compare the outputs of an exported model with those of `ExportSource.reference`.

    A head may amplify rounding errors (for example BatchNorm over channels that hardly vary). If `TOLERANCE` is
    exceeded, the rounding error of dinomed itself is measured in float64, and ten times this error is allowed, at most
    0.01. Sizes below that of the backbone at which the head raises an error are left out.

    Args:
        tool: that runs the exported model, for messages.
        forward: function from preprocessed images to the outputs of the exported model.
        shapes: (count, height, width) of the random batches, px.

    Returns:
        The tool, the compared shapes, the largest relative difference and the tolerance.

    Raises:
        DinomedError: the outputs differ.
    """
    side, channels = source.preprocessing.image_size, source.preprocessing.channels
    generator, compared = torch.Generator().manual_seed(0), []
    worst, allowed = 0.0, TOLERANCE
    for count, height, width in shapes:
        pixels = torch.randn(count, channels, height, width, generator=generator)
        try:
            expected = source.reference(pixels)
        except UsageError:  # the image is too small for the decoder
            if min(height, width) >= side:
                raise
            continue
        with torch.no_grad():
            outputs = forward(pixels)
        outputs = [outputs] if isinstance(outputs, Tensor) else [torch.as_tensor(output) for output in outputs]
        distance = difference(outputs, expected)
        if distance > TOLERANCE:
            rounding = difference(expected, source.doubled().reference(pixels.double()))
            allowed = max(allowed, min(_ROUNDING_FACTOR * rounding, _MAX_TOLERANCE))
        if not distance <= allowed:
            raise DinomedError(
                f"{tool} gives other values for {source.title} than dinomed: they differ by {distance:.2g} (allowed: "
                f"{allowed:.2g}); nothing is written"
            )
        worst = max(worst, distance)
        compared.append((count, height, width))
    return {"compared_with": tool, "batches": compared, "largest_difference": worst, "tolerance": allowed}


def difference(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference of any output, relative to its largest value (at least 1).

    The result is nan if shapes differ or a value is nan.
    """
    if [output.shape for output in outputs] != [output.shape for output in expected]:
        return float("nan")
    pairs = zip(outputs, expected, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1)).item() for a, b in pairs)
