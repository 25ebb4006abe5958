"""The two feed-forward layers of DINOv2: MLP (distilled models) and SwiGLU (trained from scratch)."""

from torch import Tensor, nn
from torch.nn.functional import silu


class MLP(nn.Module):
    """Linear, GELU, linear: (..., C) -> (..., C)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class SwiGLU(nn.Module):
    """Gated SiLU (Shazeer 2020): (..., C) -> (..., C). `hidden` is that of the MLP it replaces; 2/3 of it, rounded
    up to a multiple of 8, keeps the number of parameters."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(silu(gate) * value)
