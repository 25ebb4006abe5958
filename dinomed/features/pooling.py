"""Generalised mean pooling (GeM) of patch tokens.

Radenović et al. 2018, "Fine-tuning CNN image retrieval with no human annotation", section 3.2.
"""

from torch import Tensor

_FLOOR = 1e-6  # the generalised mean is defined for positive numbers


def generalised_mean(grid: Tensor, power: float, *, rescale: bool = True) -> Tensor:
    """Compute (mean of x^power)^(1/power) over the grid, (B, C, rows, columns) -> (B, C); x below 1e-6 counts as 1e-6.

    Power 1 is the mean; a large power approaches the maximum.

    Args:
        rescale: divide by the largest value first, so that no power of a float32 value overflows. False rounds as the
            reference code of SSCD does.
    """
    positive = grid.float().flatten(2).clamp_min(_FLOOR)
    if not rescale:
        return positive.pow(power).mean(dim=2).pow(1 / power)
    largest = positive.amax(dim=2, keepdim=True)
    return largest[..., 0] * (positive / largest).pow(power).mean(dim=2).pow(1 / power)
