"""Targets from teacher logits: Sinkhorn-Knopp (Caron et al. 2020, SwAV), or centring and sharpening (DINO).

Shape suffixes: B rows (class tokens, or masked patches), K prototypes. Sums run over all ranks; a single process needs
no process group.
"""

import torch
from torch import Tensor, nn

from dinomed.distributed import sum_over_ranks


@torch.no_grad()
def sinkhorn_knopp(logits_BK: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Compute targets (B, K) whose rows sum to 1 and whose columns sum to about B/K, an equal share for each prototype.

    Two scaling vectors are updated instead of the matrix: the same result with less memory traffic. Logits are
    cosines, so ``exp((logit - 1) / temperature)`` cannot overflow, and cannot underflow at a temperature of 0.04. A
    factor common to all rows does not change the result. A factor for each row would change it, because 3 iterations do
    not converge.
    """
    with torch.autocast(logits_BK.device.type, enabled=False):  # autocast would compute the products in half precision
        q_BK = torch.sub(logits_BK.float(), 1.0).mul_(1 / temperature).exp_()
        row_B = torch.ones(q_BK.shape[0], device=q_BK.device)
        inverse_K = torch.ones(q_BK.shape[1], device=q_BK.device)
        for _ in range(iterations):  # also without rows on this rank: other ranks wait for its share
            inverse_K = 1.0 / sum_over_ranks(row_B @ q_BK).clamp_min(torch.finfo(torch.float32).tiny)
            row_B = 1.0 / (q_BK @ inverse_K)
        return q_BK.mul_(inverse_K).mul_(row_B.unsqueeze(1))


class Center(nn.Module):
    """Softmax of centred logits; the centre is a running mean of teacher logits (Caron et al. 2021, section 3.1)."""

    center_K: Tensor

    def __init__(self, num_prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center_K", torch.zeros(num_prototypes))

    @torch.no_grad()
    def forward(self, logits_BK: Tensor, temperature: float) -> Tensor:
        """Compute targets (B, K) of logits (B, K) with the present centre, then update the centre with these logits."""
        logits = logits_BK.float()
        targets = torch.softmax(torch.sub(logits, self.center_K).mul_(1 / temperature), dim=-1)
        total = sum_over_ranks(torch.cat([logits.sum(0), logits.new_tensor([float(len(logits))])]))
        if total[-1] > 0:
            self.center_K.lerp_(total[:-1] / total[-1], 1 - self.momentum)
        return targets
