"""The two cross-entropies of DINOv2, fused: ``logsumexp(s) - t.s`` needs no log-softmax matrix.

Shape suffixes: V views, B images, K prototypes, M masked patches.
"""

import torch
from torch import Tensor


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """(..., K) student scores (already divided by the temperature) and targets with rows summing to 1 -> (...)."""
    return torch.logsumexp(scores, dim=-1) - (targets * scores).sum(dim=-1)


def dino_loss(student_VBK: Tensor, targets_2BK: Tensor, temperature: float = 0.1) -> Tensor:
    """DINO (Caron et al. 2021, eq. 1-3): every student view against the teacher's targets of the other global view.

    The first two student views are the global ones; a view is never compared with itself. The mean over all pairs:
    2 global and 2 x 8 local pairs in the recipe, so "divided by 2 + 16".
    """
    scores = student_VBK.float() / temperature
    pairs = 2 + 2 * (len(scores) - 2)
    loss = cross_entropy(scores[0], targets_2BK[1]).mean() + cross_entropy(scores[1], targets_2BK[0]).mean()
    if len(scores) > 2:
        # linear in the targets: both teacher views at once
        both = targets_2BK.sum(0)
        local = scores[2:]
        loss = loss + (2 * torch.logsumexp(local, dim=-1) - (both * local).sum(-1)).mean(dim=1).sum()
    return loss / pairs


def ibot_loss(
    student_MK: Tensor, targets_MK: Tensor, weights_M: Tensor, num_views: int, temperature: float = 0.1
) -> Tensor:
    """iBOT (Zhou et al. 2021) on masked patches: each weighs 1 / (masked patches of its view), the sum is divided by
    all global views of the batch, masked or not, as in the reference code."""
    losses = cross_entropy(student_MK.float() / temperature, targets_MK)
    return (losses * weights_M).sum() / num_views
