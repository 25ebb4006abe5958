"""Schedules of values that change during a run, as functions of its progress.

No schedule has its own length in iterations. The paper's absolute numbers (100,000 of 625,000 iterations of warm-up)
become fractions of the run, so that a run of 1,000 steps finishes its warm-up as one of 625,000 does.
"""

import math

from pydantic import Field

from dinomed.config import Config


class Schedule(Config):
    """Linear from `start` to `peak` over the first `warmup` of the run, then a cosine to `end`."""

    start: float = 0.0
    peak: float
    end: float
    warmup: float = Field(0.0, ge=0, lt=1, description="fraction of the run")

    def __call__(self, step: int, total: int) -> float:
        """Return the value at `step` of 0 .. total - 1."""
        warmup_steps = int(self.warmup * total)
        if step < warmup_steps:
            return self.start + (self.peak - self.start) * step / warmup_steps
        progress = (step - warmup_steps) / max(total - warmup_steps, 1)
        return self.end + (self.peak - self.end) * (1 + math.cos(math.pi * progress)) / 2
