"""Log of a run, and the metrics that show a collapse."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinomed.distributed import gather_rows, sum_over_ranks, world_size
from dinomed.io.files import append_text, replacing, to_json
from dinomed.layers.stochastic_depth import num_kept
from dinomed.loggers.group import LoggerGroup
from dinomed.loggers.logger import LoggedRun
from dinomed.loggers.parameters import run_parameters
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.run_folder import LOG_FILE, PCA


def target_statistics(targets_2BK: Tensor) -> dict[str, float]:
    """Compute the entropies of the teacher's targets over all ranks, in nats.

    ``target_entropy`` is the mean entropy of the target of one image (log K: no information; 0: certain).
    ``target_entropy_mean`` is the entropy of the mean target of the batch (0: all images have the same prototype, a
    collapse). ``target_information`` is their difference: the mutual information of target and image.
    If it is 0, there is nothing to learn, and the DINO loss stays at log K.
    """
    rows = targets_2BK.flatten(0, 1)
    of_rank = torch.cat([rows.mean(0), _entropy(rows).mean().view(1)])
    mean_K, entropy_1 = (sum_over_ranks(of_rank) / world_size()).split([rows.shape[1], 1])
    entropy, entropy_of_mean = entropy_1.item(), _entropy(mean_K).item()
    return {
        "target_entropy": entropy,
        "target_entropy_mean": entropy_of_mean,
        "target_information": entropy_of_mean - entropy,
    }


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp_min(1e-12).log()).sum(-1)


@torch.no_grad()
def effective_rank(features_NC: Tensor) -> float:
    """Compute RankMe (Garrido et al. 2023) of the features of all ranks, from 1 to min(N, C).

    It is the exponential of the entropy of the normalised singular values. Near 1 all features are almost the same; nan
    if a feature is not finite.
    """
    rows = gather_rows(features_NC.float())
    if not torch.isfinite(rows).all():
        return math.nan
    values = torch.linalg.svdvals(rows)
    return float(torch.exp(_entropy(values / values.sum().clamp_min(1e-12))))


class RunLog:
    """``log.jsonl`` of a run folder, and its loggers (`dinomed.loggers`).

    A resume removes the lines after its checkpoint, or all lines if there is no checkpoint.

    Args:
        folder: the run folder.
        config: the resolved settings.
        first_step: the number of steps that were finished before.
    """

    def __init__(self, folder: Path, config: PretrainConfig, first_step: int) -> None:
        self.path = folder / LOG_FILE
        rows: list[tuple[int, dict[str, Any]]] = []
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines() if first_step else []
            parsed = [(line, row) for line in lines if (row := _parse_line(line)) is not None]
            kept = [(line, row) for line, row in parsed if row[0] <= first_step]
            with replacing(self.path) as temporary:
                temporary.write_text("".join(line + "\n" for line, _ in kept), encoding="utf-8", newline="\n")
            rows = [row for _, row in kept]
        self._loggers = LoggerGroup(
            config.run.loggers,
            LoggedRun(folder, folder.resolve().name, run_parameters(config), first_step),
            rows,
            _pictures(folder, first_step) if first_step else (),
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append the values of a step to the log, and pass them to the loggers."""
        append_text(self.path, to_json({"step": step, **values}) + "\n")
        self._loggers.scalars(step, values)

    def picture(self, step: int, path: Path) -> None:
        """Pass the PCA picture of a checkpoint to the loggers."""
        self._loggers.picture(step, PCA, path)

    def close(self) -> None:
        """Close the loggers."""
        self._loggers.close()


def _parse_line(line: str) -> tuple[int, dict[str, Any]] | None:
    """Return the step of a line of the log and its other values; None for a line that was cut off by a kill."""
    try:
        values = json.loads(line)
        return int(values["step"]), {name: value for name, value in values.items() if name != "step"}
    except (ValueError, KeyError, TypeError):
        return None


def _pictures(folder: Path, last_step: int) -> list[tuple[int, str, Path]]:
    """Return the PCA pictures of a run folder up to a step."""
    paths = [path for path in sorted((folder / PCA).glob("*.png")) if path.stem.isdecimal()]
    return [(int(path.stem), PCA, path) for path in paths if int(path.stem) <= last_step]


class RunningMeans:
    """Means of values between two lines of the log.

    Args:
        sums: sums of each value since the last line, from the checkpoint of a resumed run.
        count: number of steps in them.
    """

    def __init__(self, sums: Mapping[str, Tensor | float] | None = None, count: int = 0) -> None:
        self.sums: dict[str, Tensor | float] = dict(sums or {})
        self.count = count

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the values of a step."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()
        self.count += 1

    def take(self) -> dict[str, float]:
        """Return the means since the last call, and start again. It waits for the device once."""
        means = {name: float(total) / self.count for name, total in self.sums.items()} if self.count else {}
        self.sums, self.count = {}, 0
        return means


def effective_drop_rate(num_views: int, rate: float) -> float:
    """Return the true stochastic-depth rate of a batch, which slicing rounds (`dinomed.layers.stochastic_depth`)."""
    return 1 - num_kept(num_views, rate) / num_views if rate else 0.0


def device_memory_gib(device: torch.device) -> float | None:
    """Return the peak memory that the process allocated on a CUDA device, GiB; None on other devices."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
