"""Comparison of an exported model with the original, on random images."""

from collections.abc import Callable, Sequence
from math import isnan
from typing import Any

import torch
from torch import Tensor

from dinomed.adapters.export.source import ExportSource
from dinomed.errors import DinomedError, UsageError

TOLERANCE = 1e-4
"""Largest allowed difference from the original, relative to the largest value (at least 1). Float32 sums in a different
order differ by about 1e-6; a difference above this tolerance means that the computation is not the same."""
_ROUNDING_FACTOR, _MAX_TOLERANCE = 10, 1e-2
Shape = tuple[int, int, int]


def compare(
    source: ExportSource, tool: str, forward: Callable[[Tensor], Any], shapes: Sequence[Shape]
) -> dict[str, Any]:
    """Compare the outputs of an exported model with those of `ExportSource.reference`.

    A head may amplify rounding errors (for example BatchNorm over channels that hardly vary). If `TOLERANCE` is
    exceeded, the rounding error of the original is measured against float64; ten times this error is allowed, at most
    0.01. Images smaller than the input size of the backbone are skipped if the head raises an error for them.

    Args:
        source: the original backbone or adapter.
        tool: name of the program that runs the exported model, for messages.
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
                f"outputs of {tool} for {source.title} differ from those of dinomed by {distance:.2g} (allowed: "
                f"{allowed:.2g}); nothing is written"
            )
        worst = max(worst, distance)
        compared.append((count, height, width))
    return {"compared_with": tool, "batches": compared, "largest_difference": worst, "tolerance": allowed}


def difference(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest absolute difference of an output, divided by its largest expected value (at least 1).

    The result is the maximum over all outputs. It is nan if shapes differ or a value is nan.
    """
    if [output.shape for output in outputs] != [output.shape for output in expected]:
        return float("nan")
    pairs = zip(outputs, expected, strict=True)
    distances = [((a - b).abs().max() / b.abs().max().clamp_min(1)).item() for a, b in pairs]
    return float("nan") if any(isnan(distance) for distance in distances) else max(distances)  # max() ignores a nan
