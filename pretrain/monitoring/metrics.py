"""Training metrics, logging and health warnings of a run."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinomed.backbones.vit import VisionTransformer
from dinomed.distributed import rank, sum_over_ranks, world_size
from dinomed.log import logger
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.monitoring.energy import EnergyMeter
from dinomed.pretrain.monitoring.health import HealthCheck
from dinomed.pretrain.monitoring.online_knn import KnnHistory, OnlineKNN
from dinomed.pretrain.monitoring.run_log import (
    RunLog,
    RunningMeans,
    device_memory_gib,
    effective_drop_rate,
    effective_rank,
    target_statistics,
)
from dinomed.pretrain.train_step import StepReport

BEST_BY = "knn_auroc"  # the metric of the best backbone and of `run.patience`


class TrainingMetrics:
    """Metrics of a run from its start or resume. All ranks make the same calls; rank 0 writes the log.

    Args:
        first: the number of steps that were finished before.
        extra: the entries that `state` returned for the checkpoint of a resumed run.
    """

    def __init__(
        self,
        config: PretrainConfig,
        out: Path,
        device: torch.device,
        first: int,
        knn: OnlineKNN | None,
        extra: dict[str, Any],
    ) -> None:
        run = config.run
        self.config, self.device, self.first, self.knn = config, device, first, knn
        self.log = RunLog(out, config, first) if rank() == 0 else None
        self.knn_history = KnnHistory(**extra.get("knn", {}))
        self.energy = EnergyMeter(device, run.assumed_watts, **extra.get("energy", {}))
        self.health = HealthCheck(config.objective.dino_head.prototypes, 2 * run.batch_size, run.steps)
        self.latest: dict[str, float] = {}
        self._warned_of_fall = False
        self._means = RunningMeans(**extra.get("means", {}))
        # K: 1 for the first choice of some view since the last line
        self._used_prototypes = _unpack_bits(extra.get("used_prototypes"), device)
        self._began = time.monotonic()

    def state(self) -> dict[str, Any]:
        """Return the entries that a checkpoint keeps, so that the log of a resumed run has the same values."""
        sums = {name: float(total) for name, total in self._means.sums.items()}
        return {
            "knn": self.knn_history.as_dict(),
            "energy": {"kwh": self.energy.kwh, "seconds": self.energy.seconds},
            "means": {"sums": _mean_over_ranks(sums, self.device), "count": self._means.count},
            "used_prototypes": _pack_bits(self._used_prototypes),
        }

    def add(self, report: StepReport) -> None:
        """Add a finished step to the means."""
        self._means.add(report.losses)
        if report.targets is not None:
            chosen = report.targets.flatten(0, 1).argmax(-1)
            if self._used_prototypes is None:
                self._used_prototypes = torch.zeros(report.targets.shape[-1], device=self.device)
            self._used_prototypes[chosen] = 1

    def write(self, done: int, report: StepReport) -> None:
        """Write a line of the log after `done` steps, and the health warnings that it gives."""
        run = self.config.run
        self.latest = _mean_over_ranks(self._means.take(), self.device)
        line = self.latest | self._measure(report)
        line["images_per_second"] = (done - self.first) * run.batch_size / (time.monotonic() - self._began)
        self.energy.sample()
        if self.log:
            self.log.write(done, line)
        for warning in self.health.check(done, line):
            logger.warning(warning)

    def evaluate(self, done: int, backbone: VisionTransformer) -> bool:
        """Run online k-NN, if there are labels, and return whether the backbone is the best so far."""
        if self.knn is None:
            return False
        scores = self.knn.measure(backbone, self.device)
        initial, is_best = self.knn_history.start, self.knn_history.add(done, scores[BEST_BY])
        if self.log:
            self.log.write(done, scores)
        self._warn_of_fall(done, initial, scores[BEST_BY])
        return is_best

    def _warn_of_fall(self, done: int, initial: float | None, auroc: float) -> None:
        """Warn once if the k-NN AUROC is below its first value by more than chance explains."""
        assert self.knn is not None
        if initial is None or self._warned_of_fall or not initial - auroc > self.knn.chance_fall(initial, auroc):
            return
        self._warned_of_fall = True
        logger.warning(
            f"step {done}: the k-NN AUROC is {auroc:.3f}, worse than at the start of the run ({initial:.3f}) by more "
            f"than chance explains for {len(self.knn.labels[1])} validation images; lower optimizer.lr, or raise "
            "start.warmup"
        )

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the last `run.patience` checkpoints were not better than the best one."""
        patience = self.config.run.patience
        return patience is not None and self.knn_history.waiting >= patience

    def close(self) -> None:
        """Close the log."""
        if self.log:
            self.log.close()

    def _measure(self, report: StepReport) -> dict[str, float]:
        """Return the metrics of the last step, and the share of prototypes used since the last line."""
        run, backbone = self.config.run, self.config.backbone
        values = {f"gradient_norm/{name}": norm for name, norm in report.gradient_norms.items() if report.finite}
        if report.targets is not None:
            values |= target_statistics(report.targets)
            values["dino_kl"] = self.latest.get("dino", float("nan")) - values["target_entropy"]
        if self._used_prototypes is not None:
            values["prototypes_used"] = float((sum_over_ranks(self._used_prototypes) > 0).float().mean())
            self._used_prototypes = None
        if report.cls is not None:
            values["rank"] = effective_rank(report.cls)
        memory = device_memory_gib(self.device)
        if memory is not None:
            values["memory_gib"] = memory
        views = 2 * min(run.micro_batch or run.batch_size, run.batch_size // world_size())
        values["drop_path_effective"] = effective_drop_rate(views, backbone.drop_path)
        return values | {"lr": report.lr, "teacher_temperature": report.temperature}


def _pack_bits(flags: Tensor | None) -> dict[str, Any] | None:
    """Return which of K flags are set on some rank: K, and 8 flags in each byte as hex digits."""
    if flags is None:
        return None
    bits = np.packbits((sum_over_ranks(flags.clone()) > 0).cpu().numpy())
    return {"count": len(flags), "bits": bits.tobytes().hex()}


def _unpack_bits(packed: dict[str, Any] | None, device: torch.device) -> Tensor | None:
    if packed is None:
        return None
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(packed["bits"]), np.uint8), count=packed["count"])
    return torch.from_numpy(bits).to(device, torch.float32)


def _mean_over_ranks(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Return the mean of each value over all ranks."""
    total = sum_over_ranks(torch.tensor(list(values.values()), dtype=torch.float64, device=device))
    return dict(zip(values, (total / world_size()).tolist(), strict=True))
