"""The two cross-entropies of DINOv2, fused: no log-softmax matrix, and a backward that writes its gradient once.

Shape suffixes: V views, B images, K prototypes, M masked patches.
"""

from typing import Any

import torch
from torch import Tensor


def cross_entropy(scores: Tensor, targets: Tensor, temperature: float, mass: float = 1.0) -> Tensor:
    """(..., K) student scores and targets whose rows sum to `mass` (broadcast over the leading dimensions) -> (...).

    In float32 whatever the scores are. ``mass`` 2 compares one row of scores with the sum of two targets.
    """
    loss: Tensor = _CrossEntropy.apply(scores.float(), targets, 1 / temperature, mass)
    return loss


class _CrossEntropy(torch.autograd.Function):
    """``mass * logsumexp(s / T) - t . s / T``; kept for the backward are the exponentials instead of the scores."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, targets: Tensor, sharpness: float, mass: float) -> Tensor:
        largest = scores.amax(-1, keepdim=True)
        product = torch.einsum("...k,...k->...", targets, scores)
        exponentials = torch.sub(scores, largest).mul_(sharpness).exp_()
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
    """DINO (Caron et al. 2021, eq. 1-3): every student view against the teacher's targets of the other global view.

    The first two student views are the global ones; a view is never compared with itself. The mean over all pairs:
    2 global and 2 x 8 local pairs in the recipe, so "divided by 2 + 16".
    """
    pairs = 2 + 2 * (len(student_VBK) - 2)
    loss = cross_entropy(student_VBK[:2], targets_2BK.flip(0), temperature).mean(1).sum()
    if len(student_VBK) > 2:
        # linear in the targets: both teacher views at once
        loss = loss + cross_entropy(student_VBK[2:], targets_2BK.sum(0), temperature, mass=2.0).mean(1).sum()
    return loss / pairs


def ibot_loss(
    student_MK: Tensor, targets_MK: Tensor, weights_M: Tensor, num_views: int, temperature: float = 0.1
) -> Tensor:
    """iBOT (Zhou et al. 2021) on masked patches: each weighs 1 / (masked patches of its view), the sum is divided by
    all global views of the batch, masked or not, as in the reference code."""
    return (cross_entropy(student_MK, targets_MK, temperature) * weights_M).sum() / num_views
