"""One optimiser step: student, teacher, optimiser and schedules, on one device or on all of them."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinomed.backbones.vit import VisionTransformer
from dinomed.distributed import is_distributed, max_over_ranks, on_main, sum_over_ranks, world_size
from dinomed.errors import UsageError
from dinomed.io.checkpoint import prune_checkpoints
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.data.stream import RawBatch
from dinomed.pretrain.distributed.parallel import average_gradients, distribute, local, whole_state
from dinomed.pretrain.model.accumulation import forward_backward
from dinomed.pretrain.model.dinov2 import Batch, DINOv2, backbone_of
from dinomed.pretrain.model.distillation import Distillation, Teacher
from dinomed.pretrain.model.initialisation import Start, load_start
from dinomed.pretrain.model.lora import add_lora
from dinomed.pretrain.optim.optimizer import OptimizerDriver
from dinomed.pretrain.state import load_state, save_state, seed_step

PRECISION = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class StepReport:
    """What a step did. `losses` (each term, and "loss", their weighted sum) are this process's; the rest is shared."""

    losses: dict[str, torch.Tensor]
    targets: torch.Tensor | None  # 2, B, K: the teacher's on class tokens
    cls: torch.Tensor | None  # 2B, C: the student's class tokens of the global views
    gradient_norms: dict[str, float]
    finite: bool  # if not, the step was skipped
    lr: float
    temperature: float


class Engine:
    """Builds the model of a config and trains it step by step; all ranks make the same calls."""

    def __init__(
        self, config: PretrainConfig, device: torch.device, start: Start | None = None, teacher: Teacher | None = None
    ) -> None:
        """`start`: weights to begin with; `teacher`: to distil from."""
        run = config.run
        self.config, self.device = config, device
        torch.manual_seed(run.seed)
        model = DINOv2(config.backbone, config.objective) if teacher is None else Distillation(config, teacher)
        if start is not None:
            load_start(start, model)
        if config.tune.lora is not None:
            add_lora(backbone_of(model.student), config.tune.lora)
        self.model = model.to(device).train()
        self.parameters = {
            name: sum(p.numel() for p in module.parameters()) for name, module in self.model.student.items()
        }
        self._prepare_blocks()
        self._precision = PRECISION[run.precision]
        if is_distributed():
            if run.precision == "float16":
                raise UsageError("run.precision float16 is for one process; use bfloat16 with several")
            half = None if run.precision == "float32" else self._precision
            for side in self.model.sides if config.tune.lora is None else ():
                distribute(side, run.parallel, device, half)
        self.optimizer = OptimizerDriver(
            self.model.student, config.optimizer, run.batch_size, run.steps, config.start.warmup or 0.0
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=run.precision == "float16")
        self._mean, self._std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (config.mean, config.std))

    def _prepare_blocks(self) -> None:
        run = self.config.run
        for side in self.model.sides:
            backbone = backbone_of(side)
            backbone.checkpoint_activations = run.checkpoint_activations
            if run.compile:
                for block in backbone.blocks:
                    block.compile()

    def step(self, raw: RawBatch, step: int) -> StepReport:
        """One optimiser step on this process's part of a batch; skipped by all if any has a loss that is no number."""
        config, run, optimizer = self.config, self.config.run, self.optimizer
        seed_step(run.seed, step)
        lr = optimizer.set_schedules(step)
        temperature = config.teacher.temperature_at(step, run.steps)
        slices = [partial(self._to_device, part) for part in raw.split(run.micro_batch)]
        autocast = partial(torch.autocast, self.device.type, self._precision, enabled=run.precision != "float32")
        optimizer.adamw.zero_grad(set_to_none=True)
        losses = forward_backward(self.model, slices, temperature, autocast, self._backward)
        if is_distributed() and config.tune.lora is not None:
            average_gradients(self.model.student)
        self.scaler.unscale_(optimizer.adamw)
        norms = optimizer.clip_gradients()
        # in float16 the scaler skips a step whose gradient overflowed, and lowers its scale
        finite = bool(torch.isfinite(losses.total)) and (
            self.scaler.is_enabled() or all(np.isfinite(list(norms.values())))
        )
        finite = not max_over_ranks(int(not finite), self.device)
        if finite:
            self.scaler.step(optimizer.adamw)
            self.model.update_teacher(config.teacher.momentum_at(step, run.steps))
        self.scaler.update()
        terms = {"loss": losses.total.detach(), **losses.terms}
        return StepReport(terms, losses.targets, losses.cls, norms, finite, lr, temperature)

    @torch.no_grad()
    def is_sound(self, raw: RawBatch) -> bool:
        """Whether the weights, and what student and teacher make of a batch, are finite: a step shows only in the next
        one's loss that its update was too large. It costs a forward pass."""
        run = self.config.run
        batch = self._to_device(raw.split(run.micro_batch)[0])
        with torch.autocast(self.device.type, self._precision, enabled=run.precision != "float32"):
            views = self.model.view(batch)
            tokens = [values for view in views for values in (view.cls, view.patches)]
            found = [*self.model.score(batch).values(), *tokens]
        found += [local(p) for side in self.model.sides for p in side.parameters()]
        return not max_over_ranks(int(not all(bool(torch.isfinite(values).all()) for values in found)), self.device)

    def _backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def _to_device(self, raw: RawBatch) -> Batch:
        """(n, s, s, channels), uint8 or float32 in 0 to 1 -> float32 (n, channels, s, s), normalised, on the device."""

        def images(x: torch.Tensor) -> torch.Tensor:
            top = 255 if x.dtype == torch.uint8 else 1
            x = x.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            return torch.sub(x, top * self._mean).div_(top * self._std)

        def move(x: torch.Tensor) -> torch.Tensor:
            return x.to(self.device, non_blocking=True)

        batch = Batch(
            images(raw.globals), images(raw.locals), move(raw.masks), move(raw.masked), move(raw.mask_weights)
        )
        return self.model.prepare(batch)

    def load(self, root: Path) -> tuple[int, dict[str, Any]]:
        """Restore the newest readable checkpoint; returns its step (0 if there is none) and what else was saved."""
        return load_state(root, self.model, self.optimizer, self.scaler)

    def save(self, root: Path, step: int, more: dict[str, Any]) -> None:
        """Write a checkpoint, and remove those that are no longer kept."""
        save_state(root, step, self.model, self.optimizer, self.scaler, more)
        on_main(lambda: prune_checkpoints(root, self.config.run.keep_checkpoints))

    def result(self) -> VisionTransformer:
        """The backbone that a run is for, the teacher's, whole: itself in one process, a copy where it is sharded."""
        if not is_distributed():
            return self.model.result
        copy = VisionTransformer(self.config.backbone).to(self.device)
        copy.load_state_dict(dict(whole_state(self.model.result)))
        return copy.eval().requires_grad_(False)


def mean_over_ranks(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """The mean of each value over all ranks."""
    total = sum_over_ranks(torch.tensor(list(values.values()), dtype=torch.float64, device=device))
    return dict(zip(values, (total / world_size()).tolist(), strict=True))
