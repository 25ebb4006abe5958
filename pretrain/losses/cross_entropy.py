"""DINO loss and iBOT loss: fused cross-entropies without a log-softmax matrix, whose backward writes its gradient once.

Shape suffixes: V views, B images, K prototypes, M masked patches.
"""

from typing import Any

import torch
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, temperature: float, mass: float = 1.0) -> Tensor:
    """Compute the cross-entropy (...) of student logits (..., K) and targets (..., K), in float32.

    Args:
        targets: rows that sum to `mass`; broadcast over the leading dimensions.
        temperature: of the student.
        mass: 2 compares one row of logits with the sum of two targets.
    """
    with torch.autocast(logits.device.type, enabled=False):  # it would round logits and targets to half precision
        loss: Tensor = _CrossEntropy.apply(logits.float(), targets.float(), 1 / temperature, mass)
    return loss


class _CrossEntropy(torch.autograd.Function):
    """``mass * logsumexp(s / T) - t . s / T``; the backward uses saved exponentials instead of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, sharpness: float, mass: float) -> Tensor:
        largest = logits.amax(-1, keepdim=True)
        product = torch.einsum("...k,...k->...", targets, logits)
        exponentials = torch.sub(logits, largest).mul_(sharpness).exp_()
        total = exponentials.sum(-1)
        ctx.save_for_backward(exponentials, total, targets)
        ctx.sharpness, ctx.mass = sharpness, mass
        return mass * (total.log() + sharpness * largest.squeeze(-1)) - sharpness * product

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        exponentials, total, targets = ctx.saved_tensors
        scale = gradients[0] * ctx.sharpness
        gradient = exponentials * (scale * ctx.mass / total).unsqueeze(-1)
        return gradient.addcmul_(targets, scale.unsqueeze(-1), value=-1), None, None, None


def dino_loss(student_VBK: Tensor, targets_2BK: Tensor, temperature: float = 0.1) -> Tensor:
    """Compute the DINO loss (Caron et al. 2021, eq. 1-3): the mean cross-entropy over pairs of views.

    A pair is a student view and the teacher's targets of another view. The first two student views are the global ones;
    a view is never compared with itself. The recipe has 2 global and 2 x 8 local pairs, so the sum is divided by 18.

    Args:
        student_VBK: student logits of V views of B images.
        targets_2BK: targets of the two global views.
    """
    pairs = 2 + 2 * (len(student_VBK) - 2)
    loss = cross_entropy(student_VBK[:2], targets_2BK.flip(0), temperature).mean(1).sum()
    if len(student_VBK) > 2:
        # the loss is linear in the targets: sum both teacher views
        loss = loss + cross_entropy(student_VBK[2:], targets_2BK.sum(0), temperature, mass=2.0).mean(1).sum()
    return loss / pairs


def ibot_loss(
    student_MK: Tensor, targets_MK: Tensor, weights_M: Tensor, num_views: int, temperature: float = 0.1
) -> Tensor:
    """Compute the iBOT loss (Zhou et al. 2021) on M masked patches.

    The sum is divided by the number of global views of the batch, with or without masks, as in the reference code.

    Args:
        weights_M: 1 / (number of masked patches of the view) for each patch.
        num_views: number of global views of the batch.
    """
    return (cross_entropy(student_MK, targets_MK, temperature) * weights_M).sum() / num_views
