"""Losses of depth estimators on differences of logarithms, over the pixels with known depth.

SigLoss: the scale-invariant loss of Eigen et al. 2014 (equation 4) as AdaBins and DINOv2 write it,
sqrt(var(d) + 0.15 mean(d)^2) with d = log(prediction) - log(targets) over the whole batch. Gradient loss: Li and
Snavely 2018 (MegaDepth, section 4.1): differences of d between pixels two apart, at four scales.
"""

import torch
from torch import Tensor

EPS, MEAN_WEIGHT = 1e-3, 0.15
SCALES = (1, 2, 4, 8)


def log_difference(prediction: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return log(prediction + 0.001) - log(targets + 0.001), 0 where unknown (nan); and where it is known, bool."""
    known = ~targets.isnan()
    filled = torch.where(known, targets, torch.ones_like(targets))
    return torch.where(known, (prediction + EPS).log() - (filled + EPS).log(), torch.zeros_like(targets)), known


def sig_loss(prediction: Tensor, targets: Tensor) -> Tensor:
    """Compute SigLoss.

    Args:
        prediction: depths (B, 1, H, W), above 0.
        targets: depths of the same shape, nan where unknown.

    Returns:
        The loss, a scalar of 0 or more. A single known pixel has no variance, so its loss is sqrt(0.15) |d|, where the
        reference code, with the variance of a sample, gives nan; without a known pixel the loss is 0.
    """
    difference, known = log_difference(prediction, targets)
    values = difference[known]
    if not len(values):
        return difference.sum()
    variance = values.var() if len(values) > 1 else torch.zeros_like(values[0])
    return (variance + MEAN_WEIGHT * values.mean() ** 2 + 1e-12).sqrt()  # the gradient of the root is infinite at 0


def gradient_loss(prediction: Tensor, targets: Tensor) -> Tensor:
    """Compute the gradient loss: the sum over scales of the mean absolute difference along both axes.

    Arguments as in `sig_loss`.
    """
    difference, known = log_difference(prediction, targets)
    total = difference.sum() * 0
    for scale in SCALES:
        d, m = difference[..., ::scale, ::scale], known[..., ::scale, ::scale]
        down = (d[..., 2:, :] - d[..., :-2, :]).abs() * (m[..., 2:, :] & m[..., :-2, :])
        across = (d[..., :, 2:] - d[..., :, :-2]).abs() * (m[..., :, 2:] & m[..., :, :-2])
        total = total + (down.sum() + across.sum()) / m.sum().clamp_min(1)
    return total
