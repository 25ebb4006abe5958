"""Multi-head self-attention over packed sequences. The tokens of a crop attend only to tokens of the same crop.

Shape suffixes: T tokens of all sequences together, C channels, H heads, D channels a head.

Crops of one size form a group (B, N). The linear layers see all tokens as one (T, C) matrix. `packed_attention` chooses
the kernel of the attention.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from dinomed.layers.packed_attention import Group, attend
from dinomed.layers.rotary_position import rotate


class Attention(nn.Module):
    """Multi-head self-attention with a query-key-value and an output projection.

    The state-dict keys are those of DINOv2 (``qkv``, ``proj``).
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"embedding dimension {dim} is not divisible by {num_heads} heads")
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_TC: Tensor, groups: Sequence[Group], rotations: Sequence[Tensor] | None = None) -> Tensor:
        """Apply attention, (T, C) -> (T, C). T is the sum of B * N over `groups`, in their order.

        Args:
            rotations: a `rotation_table` for each group; None without rotary positions.
        """
        qkv_T3HD = self.qkv(x_TC).view(len(x_TC), 3, self.num_heads, self.head_dim)
        if rotations is not None:
            qkv_T3HD = rotate(qkv_T3HD, groups, rotations)
        return self.proj(attend(qkv_T3HD, groups))
