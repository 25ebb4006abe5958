"""What changes during a run, each as a function of its progress: no schedule has a length of its own in iterations.

The paper's absolute numbers (100,000 of 625,000 iterations of warm-up) become fractions; a run of 1,000 steps then
leaves its warm-up as one of 625,000 does.
"""

import math

from pydantic import Field

from dinomed.config import Config


class Schedule(Config):
    """Linear from `start` to `peak` over the first `warmup` of the run, then a cosine to `end`."""

    start: float = 0.0
    peak: float
    end: float
    warmup: float = Field(0.0, ge=0, lt=1)

    def __call__(self, step: int, total: int) -> float:
        """The value at `step` of 0 .. total - 1."""
        warm = int(self.warmup * total)
        if step < warm:
            return self.start + (self.peak - self.start) * step / warm
        progress = (step - warm) / max(total - warm, 1)
        return self.end + (self.peak - self.end) * (1 + math.cos(math.pi * progress)) / 2
