"""Targets from teacher logits: Sinkhorn-Knopp (Caron et al. 2020, SwAV), or centring and sharpening (DINO).

Shape suffixes: B rows (class tokens, or masked patches), K prototypes. Sums run over all ranks; a single process needs
no process group.
"""

import torch
from torch import Tensor, nn

from dinomed.distributed import elementwise_max_over_ranks, sum_over_ranks


@torch.no_grad()
def sinkhorn_knopp(logits_BK: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Compute targets that use every prototype equally (SwAV, Caron et al. 2020, section 3.1).

    The matrix ``exp(logits / temperature)`` is scaled to columns of equal sum and rows of sum 1, in turn. The first
    column step is computed in the log domain; after it every column holds an entry of at least 1 / B and every row,
    divided by its maximum, an entry of 1. So nothing that counts underflows in the steps that follow, which keep two
    scaling vectors instead of rewriting the matrix.

    Args:
        logits_BK: (B, K), teacher logits of B rows and K prototypes. A rank may hold no row.
        temperature: of the teacher; exact to 1e-5 for 0.005 and above with logits in [-1, 1].
        iterations: of column and row scaling; the reference takes 3.

    Returns:
        (B, K) targets in float32; rows sum to 1, columns to about B / K.
    """
    with torch.autocast(logits_BK.device.type, enabled=False):  # it would make the products below half precision
        q_BK = logits_BK.float() * (1 / temperature)
        largest_K = elementwise_max_over_ranks(q_BK.amax(0) if len(q_BK) else q_BK.new_full(q_BK.shape[1:], -torch.inf))
        total_K = sum_over_ranks(torch.sub(q_BK, largest_K).exp_().sum(0))
        q_BK.sub_(largest_K + total_K.log())
        if len(q_BK):
            q_BK.sub_(q_BK.amax(1, keepdim=True))
        q_BK.exp_()
        inverse_K = torch.ones(q_BK.shape[1], device=q_BK.device)
        row_B = 1.0 / (q_BK @ inverse_K)
        for _ in range(iterations - 1):  # also with no row on this rank: the others wait for its share of the sums
            inverse_K = 1.0 / sum_over_ranks(row_B @ q_BK)
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
        """Compute targets (B, K) of logits (B, K) with the present centre, then update the centre with these logits.

        Logits that are not finite change nothing: their step is skipped, and the centre would keep them for good.
        """
        logits = logits_BK.float()
        targets = torch.softmax(torch.sub(logits, self.center_K).mul_(1 / temperature), dim=-1)
        total = sum_over_ranks(torch.cat([logits.sum(0), logits.new_tensor([float(len(logits))])]))
        if total[-1] > 0 and total.isfinite().all():
            self.center_K.lerp_(total[:-1] / total[-1], 1 - self.momentum)
        return targets
