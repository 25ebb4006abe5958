"""Regression of the pixels, or of gradient histograms (HOG), of masked patches.

Shape suffixes: V views, P patches, D values of a patch.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot, pad

BINS = 9
CELL = 8  # px


def num_values(target: str, patch_size: int, channels: int) -> int:
    """Return the number of values that describe a patch."""
    if target == "pixels":
        return channels * patch_size**2
    return channels * BINS * (patch_size // _cell(patch_size)) ** 2


def pixel_targets(views: Tensor, patch_size: int) -> Tensor:
    """Return the pixels of each patch with mean 0 and variance 1 (MAE, He et al. 2022, section 3, "normalized pixels").

    Args:
        views: (V, channels, height, width).

    Returns:
        (V, P, channels * patch_size^2).
    """
    x_VPD = _patches(views, patch_size)
    mean, variance = x_VPD.mean(-1, keepdim=True), x_VPD.var(-1, keepdim=True)
    return (x_VPD - mean) / (variance + 1e-6).sqrt()


def hog_targets(views: Tensor, patch_size: int) -> Tensor:
    """Return histograms of oriented gradients (MaskFeat, Wei et al. 2022, section 3): 9 unsigned directions, each
    gradient weighted by its length, in cells of 8 px (one cell a patch if its size is not a multiple of 8), for each
    channel; the histogram of a cell has length 1.

    Args:
        views: (V, channels, height, width).

    Returns:
        (V, P, channels * 9 * cells).
    """
    cell, channels = _cell(patch_size), views.shape[1]
    padded = pad(views, (1, 1, 1, 1), mode="reflect")
    dx = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    dy = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    direction = torch.atan2(dy, dx).remainder(math.pi)
    bins = (direction / math.pi * BINS).long().clamp_max(BINS - 1)
    votes = one_hot(bins, BINS) * torch.hypot(dx, dy).unsqueeze(-1)  # V, channels, height, width, BINS
    rows, columns = views.shape[2] // cell, views.shape[3] // cell
    cells = votes.view(len(views), channels, rows, cell, columns, cell, BINS).sum((3, 5))
    histograms = normalize(cells, dim=-1).permute(0, 1, 4, 2, 3).flatten(1, 2)  # V, channels * BINS, rows, columns
    return _patches(histograms, patch_size // cell)


def masked_regression_loss(predicted_MD: Tensor, targets_MD: Tensor, weights_M: Tensor, num_views: int) -> Tensor:
    """Compute the squared error of M masked patches, weighted as in the iBOT loss, in float32."""
    error_M = (predicted_MD.float() - targets_MD.float()).square().mean(-1)
    return (error_M * weights_M).sum() / num_views


def _cell(patch_size: int) -> int:
    return CELL if patch_size % CELL == 0 else patch_size


def _patches(images: Tensor, size: int) -> Tensor:
    """Cut (V, C, height, width) into patches (V, P, C * size^2)."""
    count, channels, height, width = images.shape
    grid = images.reshape(count, channels, height // size, size, width // size, size)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
