"""Memory queue: values of earlier images, for losses that are statistics of a batch."""

import torch
from torch import Tensor, nn


class MemoryQueue(nn.Module):
    """The newest `capacity` rows that were added. The rows are in checkpoints, so a resumed run continues exactly.

    They are values of earlier steps, a little out of date: weights that change slowly make this tolerable (as in MoCo,
    He et al. 2020, and SwAV, Caron et al. 2020, section 4.1).
    """

    values: Tensor
    count: Tensor

    def __init__(self, capacity: int, width: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(capacity, width))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def rows(self, like: Tensor) -> Tensor:
        """Return the stored rows (at most `capacity`, width), newest first, in the type of `like`."""
        return self.values[: int(self.count)].to(like.dtype)

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Store rows (any number, width); nothing is stored if a value is not finite, as in a step that is skipped."""
        if not bool(torch.isfinite(rows).all()):
            return
        capacity = len(self.values)
        self.values.copy_(torch.cat([rows.detach().to(self.values.dtype), self.values])[:capacity])
        self.count.add_(len(rows)).clamp_max_(capacity)
