"""Health warnings of a run: signs of a collapse or a divergence in the log, each with its likely cause."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

# The values of healthy runs are in docs/log.md.
FLAT_LOSS = 0.97  # of log K: a DINO loss above this has not begun to fall
LOW_INFORMATION = 0.1  # of the information that a batch can carry
FEW_PROTOTYPES = 0.25  # of log K: entropy of the mean target
LOW_RANK = 2.0  # effective rank of the class tokens
RISE = 1.25  # of the lowest loss so far
SETTLED = 0.1  # fraction of the run before the first check
MIN_STEPS = 20


@dataclass
class HealthCheck:
    """Checks of the lines of the log.

    Args:
        prototypes: number of prototypes K of the DINO head.
        views: global views of a whole batch.
        steps: steps of the run.
    """

    prototypes: int
    views: int
    steps: int
    lowest_loss: float = math.inf
    warned: set[str] = field(default_factory=set)

    def check(self, step: int, line: Mapping[str, float]) -> list[str]:
        """Return the warnings that a line of the log gives; each warning is returned once in a run."""
        problems = self._find_problems(step, line)
        if "loss" in line:
            self.lowest_loss = min(self.lowest_loss, line["loss"])
        new = [text for name, text in problems.items() if name not in self.warned]
        self.warned |= problems.keys()
        return new

    def _find_problems(self, step: int, line: Mapping[str, float]) -> dict[str, str]:
        """Return the message of each problem by its name."""
        if step < max(SETTLED * self.steps, MIN_STEPS):
            return {}
        log_k, problems = math.log(self.prototypes), {}
        information, limit = line.get("target_information"), min(log_k, math.log(self.views))
        is_flat = line.get("dino", 0.0) > FLAT_LOSS * log_k
        if information is not None and information < LOW_INFORMATION * limit and is_flat:
            problems["flat"] = (
                f"the teacher's targets hardly distinguish images ({information:.2f} of {limit:.1f} nats), and the "
                f"DINO loss stays at log K = {log_k:.2f}. Usual causes, the most likely first: the teacher temperature "
                "is too high for this run (set teacher.temperature=0.02), too many prototypes, colour augmentation "
                "too strong"
            )
        if line.get("target_entropy_mean", math.inf) < FEW_PROTOTYPES * log_k:
            problems["few prototypes"] = (
                "nearly all images have the same few prototypes (a collapse to a constant). Usual causes: "
                "objective.targets=centering in a small batch (use sinkhorn), or a learning rate that is too high"
            )
        if line.get("rank", math.inf) < LOW_RANK:
            problems["rank"] = (
                f"the class tokens of different images are almost the same (effective rank {line['rank']:.1f}). Usual "
                "causes: objective.koleo_weight=0, a learning rate that is too high, or backbone.layerscale=1e-5 in a "
                "short run (use null)"
            )
        if line.get("loss", 0.0) > RISE * self.lowest_loss:
            problems["rise"] = (
                f"the loss has risen to {line['loss']:.2f} from {self.lowest_loss:.2f}: the run diverges, or the "
                "teacher changes too fast. Lower optimizer.lr, or raise teacher.momentum"
            )
        return {name: f"step {step}: {text}" for name, text in problems.items()}
