"""What a run tells about itself: JSON lines (always) and TensorBoard, and the numbers that show a collapse."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinomed.distributed import gather_rows, sum_over_ranks, world_size
from dinomed.io.files import append_text, replacing, to_json

LOG_FILE = "log.jsonl"


def target_statistics(targets_2BK: Tensor) -> dict[str, float]:
    """How much the teacher says, in nats.

    ``target_entropy``: of one image's target (log K: it says nothing; 0: it is certain). ``target_entropy_mean``: of
    the batch's mean target (0: all images get the same prototype, a collapse). Their difference,
    ``target_information``, is what the target tells about which image it is; at 0 there is nothing to learn and the
    DINO term stays at log K. All ranks measure together.
    """
    rows = targets_2BK.flatten(0, 1)
    own = torch.cat([rows.mean(0), _entropy(rows).mean().view(1)])
    mean_K, each_1 = (sum_over_ranks(own) / world_size()).split([rows.shape[1], 1])
    each, both = each_1.item(), _entropy(mean_K).item()
    return {"target_entropy": each, "target_entropy_mean": both, "target_information": both - each}


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp_min(1e-12).log()).sum(-1)


@torch.no_grad()
def effective_rank(features_NC: Tensor) -> float:
    """RankMe (Garrido et al. 2023): the exponential of the entropy of the normalised singular values of N features, 1
    to min(N, C). Near 1 all images look the same; nan where a feature is not finite. Over the rows of all ranks."""
    rows = gather_rows(features_NC.float())
    if not torch.isfinite(rows).all():
        return math.nan
    values = torch.linalg.svdvals(rows)
    return float(torch.exp(_entropy(values / values.sum().clamp_min(1e-12))))


class RunLog:
    """``log.jsonl`` and ``tensorboard/`` of a run folder; a resume drops what came after its checkpoint."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self.path = folder / LOG_FILE
        self._tensorboard_folder, self._first_step = folder / "tensorboard", first_step
        self._writer: Any = None
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _step(line) <= first_step]
            with replacing(self.path) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept))

    def write(self, step: int, values: dict[str, float]) -> None:
        append_text(self.path, to_json({"step": step, **values}) + "\n")
        for name, value in values.items():
            if math.isfinite(value):
                self._scalars().add_scalar(name, value, step)

    def _scalars(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self._tensorboard_folder, purge_step=self._first_step + 1)
        return self._writer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _step(line: str) -> int:
    """A line cut off by a kill counts as after everything."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 2**63


class Averages:
    """Running means between two log lines."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = {}
        self.count = 0

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()
        self.count += 1

    def take(self) -> dict[str, float]:
        """The means since the last call (one wait for the device)."""
        means = {name: float(total) / self.count for name, total in self.sums.items()} if self.count else {}
        self.sums, self.count = {}, 0
        return means


def effective_drop_rate(batch: int, rate: float) -> float:
    """The true stochastic-depth rate of a batch of views, floored by slicing (`dinomed.layers.stochastic_depth`)."""
    from dinomed.layers.stochastic_depth import num_kept

    return 1 - num_kept(batch, rate) / batch if rate else 0.0


def device_memory_gib(device: torch.device) -> float | None:
    """Peak memory the process allocated on a CUDA device, GiB; None elsewhere."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
