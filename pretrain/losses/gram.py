"""Gram anchoring: a loss that keeps the similarities between a student's patches close to those of an earlier teacher.

It is from Siméoni et al. 2025, "DINOv3" (arXiv 2508.10104, section 4). In long runs the class token improves while
patches lose their local meaning. The loss constrains only the pairwise similarities, not the features themselves.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize


def reduce_patches(patches_BPC: Tensor, grid: tuple[int, int], scale: int) -> Tensor:
    """Reduce patch tokens of a finer grid to a grid (rows, columns), by bicubic interpolation in float32.

    The paper's anchor sees the views at twice the resolution; its smoother maps are reduced to the grid of the student.

    Args:
        patches_BPC: tokens of a grid of (scale * rows, scale * columns).
        grid: rows and columns of the result.
        scale: an integer; 1 changes nothing.
    """
    if scale == 1:
        return patches_BPC
    maps = patches_BPC.float().transpose(1, 2).unflatten(2, (scale * grid[0], scale * grid[1]))
    return interpolate(maps, grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)


def gram_loss(student_BPC: Tensor, teacher_BPC: Tensor) -> Tensor:
    """Compute the mean squared difference of the Gram matrices of L2-normalised patch tokens.

    The paper writes the squared Frobenius norm of the difference; like the released code this is its mean over the P^2
    pairs of each image, so that the weight does not depend on the image size. The computation is in float32.
    """
    with torch.autocast(student_BPC.device.type, enabled=False):
        grams = [x @ x.transpose(1, 2) for x in (normalize(t.float(), dim=-1) for t in (student_BPC, teacher_BPC))]
        return (grams[0] - grams[1]).square().mean()
