"""One training step: student, teacher, optimiser and schedules, on one device or on several."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinomed.backbones.vit import VisionTransformer
from dinomed.distributed import is_distributed, max_over_ranks, on_main
from dinomed.errors import UsageError
from dinomed.io.checkpoint import prune_checkpoints
from dinomed.layers.attention import Attention
from dinomed.layers.packed_attention import choose_kernel, prepare_for_compilation
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.data.stream import RawBatch
from dinomed.pretrain.distributed.parallel import average_gradients, distribute, full_state, local_shard
from dinomed.pretrain.model.accumulation import forward_backward
from dinomed.pretrain.model.dinov2 import DINOv2, ViewBatch, backbone_of
from dinomed.pretrain.model.distillation import Distillation, Teacher
from dinomed.pretrain.model.feature_distillation import FeatureDistillation
from dinomed.pretrain.model.initialisation import Initialisation, load_initialisation
from dinomed.pretrain.model.lora import add_lora
from dinomed.pretrain.optim.optimizer import OptimizerDriver
from dinomed.pretrain.state import load_state, save_state, seed_step

PRECISION = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class StepReport:
    """Results of a step. `losses` (each loss, and "loss", their weighted sum), `targets` and `cls` are those of this
    process; the other values are equal on all ranks."""

    losses: dict[str, torch.Tensor]
    targets: torch.Tensor | None  # 2, B, K: the teacher's targets of the class tokens
    cls: torch.Tensor | None  # 2B, C: the student's class tokens of the global views
    gradient_norms: dict[str, float]
    finite: bool  # if not, the step was skipped
    lr: float
    temperature: float


class TrainStep:
    """The model of a config with its optimiser, trained step by step; all ranks make the same calls."""

    def __init__(
        self,
        config: PretrainConfig,
        device: torch.device,
        initialisation: Initialisation | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        """Build the model with random weights or those of `initialisation`; with a `teacher` it is a distillation."""
        run = config.run
        self.config, self.device = config, device
        torch.manual_seed(run.seed)
        model = _build_model(config, teacher)
        if initialisation is not None:
            load_initialisation(initialisation, model)
        if config.tune.lora is not None:
            add_lora(backbone_of(model.student), config.tune.lora)
        self.model = model.to(device).train()
        self.parameters = {
            name: sum(p.numel() for p in module.parameters()) for name, module in self.model.student.items()
        }
        self._prepare_blocks()
        self._precision = PRECISION[run.precision]
        self._autocast = partial(torch.autocast, device.type, self._precision, enabled=run.precision != "float32")
        for module in self.model.modules():
            if isinstance(module, Attention):  # a kernel that does not work is refused before the first step
                choose_kernel(self._precision, module.head_dim, device.type)
        if is_distributed():
            self._distribute()
        self.optimizer = OptimizerDriver(
            self.model.student, config.optimizer, run.batch_size, run.steps, config.start.warmup or 0.0
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=run.precision == "float16")
        self._mean, self._std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (config.mean, config.std))

    def _prepare_blocks(self) -> None:
        """Set activation checkpointing and compilation of the blocks."""
        run = self.config.run
        if run.compile:
            prepare_for_compilation()
        for side in self.model.sides:
            backbone = side["backbone"]
            if not isinstance(backbone, VisionTransformer):  # a frozen teacher of another library
                continue
            backbone.checkpoint_activations = run.checkpoint_activations
            if run.compile:
                for block in backbone.blocks:
                    block.compile()

    def _distribute(self) -> None:
        """Distribute the model over all processes; with LoRA each process keeps the whole model."""
        run = self.config.run
        if run.precision == "float16":
            raise UsageError("run.precision=float16 works with one process only; use bfloat16 with several")
        if self.config.optimizer.matrices == "muon":
            raise UsageError("optimizer.matrices=muon works with one process only; use adamw with several")
        if self.config.objective.queue:
            raise UsageError("objective.queue works with one process only; set it to 0 with several")
        if self.config.tune.lora is None:
            half = None if run.precision == "float32" else self._precision
            for side in self.model.sides:
                distribute(side, run.parallel, self.device, half)

    def run(self, raw: RawBatch, step: int) -> StepReport:
        """Train one step on this process's part of a batch. All ranks skip it if any has a loss that is not finite."""
        config, run, optimizer = self.config, self.config.run, self.optimizer
        seed_step(run.seed, step)
        lr = optimizer.set_schedules(step)
        temperature = config.teacher.temperature_at(step, run.steps)
        slices = [partial(self._to_device, part) for part in raw.split(run.micro_batch)]
        self.model.set_step(step, run.steps)
        optimizer.zero_grad()
        losses = forward_backward(self.model, slices, temperature, self._autocast, self._backward)
        if is_distributed() and config.tune.lora is not None:
            average_gradients(self.model.student)
        optimizer.unscale(self.scaler)
        norms = optimizer.clip_gradients()
        is_bounded = all(np.isfinite(list(norms.values())))
        # in float16 the scaler skips a step whose scaled gradient overflows, and halves its scale; at a scale of 1 the
        # gradient itself is not finite
        is_searching = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        finite = bool(torch.isfinite(losses.total)) and (is_bounded or is_searching)
        finite = not max_over_ranks(int(not finite), self.device)
        if finite:
            optimizer.take_step(self.scaler)
            if is_bounded:  # else the scaler left the student as it was
                self.model.update_teacher(config.teacher.momentum_at(step, run.steps))
        self.scaler.update()
        all_losses = {"loss": losses.total.detach(), **losses.terms}
        return StepReport(all_losses, losses.targets, losses.cls, norms, finite, lr, temperature)

    @torch.no_grad()
    def is_finite(self, raw: RawBatch) -> bool:
        """Return whether the weights and buffers, and the outputs of student and teacher on a batch, are finite.

        An update that was too large shows only in the loss of the next step. The check costs a forward pass.
        """
        batch = self._to_device(raw.split(self.config.run.micro_batch)[0])
        with self._autocast():
            tokens = [values for view in self.model.student_tokens(batch) for values in (view.cls, view.patches)]
            tensors = [*self.model.teacher_logits(batch).values(), *tokens]
        tensors += [local_shard(p) for side in self.model.sides for p in side.parameters()]
        tensors += [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        return not max_over_ranks(int(not all(bool(torch.isfinite(values).all()) for values in tensors)), self.device)

    def _backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def _to_device(self, raw: RawBatch) -> ViewBatch:
        """Move a batch to the device, and normalise its views from (n, s, s, channels), uint8 or float32 in 0 to 1, to
        float32 (n, channels, s, s)."""

        def normalise(x: torch.Tensor) -> torch.Tensor:
            top = 255 if x.dtype == torch.uint8 else 1
            x = x.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            return torch.sub(x, top * self._mean).div_(top * self._std)

        def move(x: torch.Tensor) -> torch.Tensor:
            return x.to(self.device, non_blocking=True)

        batch = ViewBatch(
            normalise(raw.globals), normalise(raw.locals), move(raw.masks), move(raw.masked), move(raw.mask_weights),
            None if raw.anchors is None else normalise(raw.anchors),
        )  # fmt: skip
        return self.model.prepare_batch(batch)

    def load(self, root: Path) -> tuple[int, dict[str, Any]]:
        """Restore the newest readable checkpoint; return its step (0 if there is none) and its extra entries."""
        return load_state(root, self.model, self.optimizer, self.scaler)

    def save(self, root: Path, step: int, extra: dict[str, Any]) -> None:
        """Write a checkpoint, and remove the oldest ones above `run.keep_checkpoints`."""
        save_state(root, step, self.model, self.optimizer, self.scaler, extra)
        on_main(lambda: prune_checkpoints(root, self.config.run.keep_checkpoints))

    def ema_backbone(self) -> VisionTransformer:
        """Return the EMA backbone with full weights: the module itself in one process, else a copy."""
        if not is_distributed():
            return self.model.ema_backbone
        copy = VisionTransformer(self.config.backbone).to(self.device)
        copy.load_state_dict(dict(full_state(self.model.ema_backbone)))
        return copy.eval().requires_grad_(False)


def _build_model(config: PretrainConfig, teacher: Teacher | None) -> DINOv2:
    """Build the model of a run, with a `teacher` that of a distillation."""
    if teacher is None:
        return DINOv2(config.backbone, config.objective)
    if config.distill.method == "features":
        return FeatureDistillation(config.backbone, teacher, config.distill)
    return Distillation(config.backbone, config.objective, teacher)
