"""Everything that is measured while a run goes on, and what is said of it."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinomed.backbones.vit import VisionTransformer
from dinomed.distributed import rank, sum_over_ranks, world_size
from dinomed.log import logger
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.monitoring.energy import EnergyMeter
from dinomed.pretrain.monitoring.health import Health
from dinomed.pretrain.monitoring.online_knn import OnlineKNN, Progress
from dinomed.pretrain.monitoring.run_log import (
    Averages,
    RunLog,
    device_memory_gib,
    effective_drop_rate,
    effective_rank,
    target_statistics,
)
from dinomed.pretrain.train_step import StepReport, mean_over_ranks

FOLLOWED = "knn_auroc"


class Watch:
    """Made at the start of a run or a resume; `state` goes into every checkpoint. All ranks make the same calls."""

    def __init__(
        self,
        config: PretrainConfig,
        out: Path,
        device: torch.device,
        first: int,
        knn: OnlineKNN | None,
        state: dict[str, Any],
    ) -> None:
        run = config.run
        self.config, self.device, self.first, self.knn = config, device, first, knn
        self.log = RunLog(out, first) if rank() == 0 else None
        self.progress = Progress(**state.get("progress", {}))
        self.energy = EnergyMeter(device, run.assumed_watts, **state.get("energy", {}))
        self.health = Health(config.objective.dino_head.prototypes, 2 * run.batch_size, run.steps)
        self._warned = False
        self.latest: dict[str, float] = {}
        self._averages = Averages()
        self._used: Tensor | None = None  # K: prototypes that were some image's first choice since the last line
        self._began = time.monotonic()

    def state(self) -> dict[str, Any]:
        energy = {"kwh": self.energy.kwh, "seconds": self.energy.seconds}
        return {"progress": self.progress.as_dict(), "energy": energy}

    def add(self, report: StepReport) -> None:
        """Count a finished step."""
        self._averages.add(report.losses)
        if report.targets is not None:
            chosen = report.targets.flatten(0, 1).argmax(-1)
            if self._used is None:
                self._used = torch.zeros(report.targets.shape[-1], device=self.device)
            self._used[chosen] = 1

    def write(self, done: int, report: StepReport) -> None:
        """Measure and write a line of the log, and warn of what it means."""
        run = self.config.run
        self.latest = mean_over_ranks(self._averages.take(), self.device)
        line = self.latest | self._measure(report)
        line["images_per_second"] = (done - self.first) * run.batch_size / (time.monotonic() - self._began)
        self.energy.sample()
        if self.log:
            self.log.write(done, line)
            for text in self.health.look(done, line):
                logger.warning(text)

    def judge(self, done: int, backbone: VisionTransformer) -> bool:
        """Measure the features, if there are labels; whether they are the best so far."""
        if self.knn is None:
            return False
        found = self.knn.measure(backbone, self.device)
        before, better = self.progress.start, self.progress.add(done, found[FOLLOWED])
        if self.log:
            self.log.write(done, found)
            self._warn_of_fall(done, before, found[FOLLOWED])
        return better

    def _warn_of_fall(self, done: int, before: float | None, now: float) -> None:
        """Once, where the k-NN is below the start by more than so few validation images explain."""
        assert self.knn is not None
        if before is None or self._warned or not before - now > self.knn.chance(before, now):
            return
        self._warned = True
        logger.warning(
            f"step {done}: the features tell classes apart worse than at the start of the run (k-NN AUROC {now:.3f}, "
            f"then {before:.3f}: more than chance for {len(self.knn.labels[1])} validation images); lower "
            "optimizer.lr, or raise start.warmup"
        )

    @property
    def has_stalled(self) -> bool:
        """Whether `run.patience` checkpoints in a row were no better than the best."""
        patience = self.config.run.patience
        return patience is not None and self.progress.waiting >= patience

    def close(self) -> None:
        if self.log:
            self.log.close()

    def _measure(self, report: StepReport) -> dict[str, float]:
        run, backbone = self.config.run, self.config.backbone
        found = {f"gradient_norm/{name}": value for name, value in report.gradient_norms.items() if report.finite}
        if report.targets is not None:
            found |= target_statistics(report.targets)
            found["dino_kl"] = self.latest.get("dino", float("nan")) - found["target_entropy"]
        if self._used is not None:
            found["prototypes_used"] = _share(self._used)
            self._used = None
        if report.cls is not None:
            found["rank"] = effective_rank(report.cls)
        memory = device_memory_gib(self.device)
        if memory is not None:
            found["memory_gib"] = memory
        views = 2 * min(run.micro_batch or run.batch_size, run.batch_size // world_size())
        found["drop_path_effective"] = effective_drop_rate(views, backbone.drop_path)
        return found | {"lr": report.lr, "teacher_temperature": report.temperature}


def _share(used: Tensor) -> float:
    return float((sum_over_ranks(used) > 0).float().mean())
