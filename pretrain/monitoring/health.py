"""What the numbers of a run mean, in words, with the likely cause: said once, when it shows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

# Where each of them lies in a run that learns is in docs/log.md.
FLAT = 0.97  # of log K: a DINO term above this has not begun to fall
LITTLE_INFORMATION = 0.1  # of what a batch can carry
FEW_PROTOTYPES = 0.25  # of log K: the entropy of the mean target
LOW_RANK = 2.0  # effective rank of the class tokens
RISE = 1.25  # of the lowest loss so far
SETTLED = 0.1  # fraction of the run after which a verdict is fair
MIN_STEPS = 20


@dataclass
class Health:
    """Looks at log lines. `prototypes` is K of the DINO head, `views` the global views of a whole batch."""

    prototypes: int
    views: int
    steps: int
    lowest: float = math.inf
    said: set[str] = field(default_factory=set)

    def look(self, step: int, line: Mapping[str, float]) -> list[str]:
        """Warnings that this line of the log gives rise to, none of them twice."""
        found = self._find(step, line)
        if "loss" in line:
            self.lowest = min(self.lowest, line["loss"])
        new = [text for name, text in found.items() if name not in self.said]
        self.said |= found.keys()
        return new

    def _find(self, step: int, line: Mapping[str, float]) -> dict[str, str]:
        if step < max(SETTLED * self.steps, MIN_STEPS):
            return {}
        log_k, found = math.log(self.prototypes), {}
        information, limit = line.get("target_information"), min(log_k, math.log(self.views))
        flat = line.get("dino", 0.0) > FLAT * log_k
        if information is not None and information < LITTLE_INFORMATION * limit and flat:
            found["flat"] = (
                f"the teacher's targets hardly tell images apart ({information:.2f} of {limit:.1f} nats), and the DINO "
                f"term stays at log K = {log_k:.2f}. Usual causes, the likeliest first: a teacher temperature too high "
                "for this run (set teacher.temperature to 0.02), too many prototypes, colours that are changed too much"
            )
        if line.get("target_entropy_mean", math.inf) < FEW_PROTOTYPES * log_k:
            found["few prototypes"] = (
                "nearly all images get the same few prototypes (a collapse to a constant). Usual causes: "
                "objective.targets: centering in a small batch (use sinkhorn), or a learning rate that is too high"
            )
        if line.get("rank", math.inf) < LOW_RANK:
            found["rank"] = (
                f"the class tokens of different images are almost the same (effective rank {line['rank']:.1f}). Usual "
                "causes: objective.koleo_weight 0, a learning rate that is too high, or backbone.layerscale 1e-5 in a "
                "short run (null)"
            )
        if line.get("loss", 0.0) > RISE * self.lowest:
            found["rise"] = (
                f"the loss has risen to {line['loss']:.2f} from {self.lowest:.2f}: the run diverges, or the teacher "
                "moves too fast. Lower optimizer.lr, or raise teacher.momentum"
            )
        return {name: f"step {step}: {text}" for name, text in found.items()}
