"""Teacher scores to targets: Sinkhorn-Knopp (Caron et al. 2020, SwAV) or centring and sharpening (DINO).

Shape suffixes: B rows (class tokens, or masked patches), K prototypes. Sums run over all ranks where there are
several, and need no process group where there is one.
"""

import torch
from torch import Tensor, nn

from dinomed.distributed import sum_over_ranks


@torch.no_grad()
def sinkhorn_knopp(scores_BK: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """(B, K) scores -> (B, K) targets, rows summing to 1, columns to about B/K: every prototype gets an equal share.

    Kept as two scaling vectors instead of rewriting the matrix at every iteration: the same result in less memory
    traffic. Scores are cosines, so ``exp((score - 1) / temperature)`` cannot overflow, and at a temperature of 0.04
    cannot underflow either; a common factor does not change the result, one for each row would (3 iterations do not
    converge).
    """
    with torch.autocast(scores_BK.device.type, enabled=False):  # it would make the products below half precision
        q_BK = torch.sub(scores_BK.float(), 1.0).mul_(1 / temperature).exp_()
        row_B = torch.ones(q_BK.shape[0], device=q_BK.device)
        inverse_K = torch.ones(q_BK.shape[1], device=q_BK.device)
        for _ in range(iterations):  # also with no row on this rank: the others wait for its share of the sums
            inverse_K = 1.0 / sum_over_ranks(row_B @ q_BK).clamp_min(torch.finfo(torch.float32).tiny)
            row_B = 1.0 / (q_BK @ inverse_K)
        return q_BK.mul_(inverse_K).mul_(row_B.unsqueeze(1))


class Center(nn.Module):
    """Softmax of centred scores; the centre is a running mean of the teacher's scores (DINO, section 3.1)."""

    center_K: Tensor

    def __init__(self, num_prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center_K", torch.zeros(num_prototypes))

    @torch.no_grad()
    def forward(self, scores_BK: Tensor, temperature: float) -> Tensor:
        """(B, K) scores -> (B, K) targets with the centre as it was; then the centre moves towards these scores."""
        scores = scores_BK.float()
        targets = torch.softmax(torch.sub(scores, self.center_K).mul_(1 / temperature), dim=-1)
        total = sum_over_ranks(torch.cat([scores.sum(0), scores.new_tensor([float(len(scores))])]))
        if total[-1] > 0:
            self.center_K.lerp_(total[:-1] / total[-1], 1 - self.momentum)
        return targets
