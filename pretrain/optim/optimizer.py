"""AdamW with DINOv2's parameter groups, and the schedules that drive it."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dinomed.backbones.vit import VisionTransformer
from dinomed.config import Config
from dinomed.errors import DinomedError
from dinomed.pretrain.distributed.parallel import whole
from dinomed.pretrain.optim.schedules import Schedule


class OptimizerConfig(Config):
    """`lr` is for a batch of `reference_batch`; the schedule is a linear warm-up, then a cosine to `lr_end`."""

    lr: float = Field(4e-3, gt=0, description="at the reference batch; 4e-3 is the paper's short run")
    lr_end: float = Field(1e-6, ge=0)
    lr_scaling: Literal["sqrt", "linear", "none"] = Field("sqrt", description="how lr grows with the batch")
    reference_batch: int = Field(1024, ge=1)
    warmup: float = Field(0.16, ge=0, lt=1, description="fraction of the run")
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.04, ge=0)
    weight_decay_end: float = Field(0.4, ge=0)
    clip_norm: float = Field(3.0, gt=0, description="of the gradient of each submodule (backbone, each head)")
    layer_decay: float = Field(1.0, gt=0, le=1)
    patch_embed_lr: float = Field(0.2, gt=0, description="factor on the learning rate of the patch embedding")
    freeze_prototypes: float = Field(0.01, ge=0, lt=1, description="fraction of the run; 1,250 of 125,000 iterations")

    def peak_lr(self, batch: int) -> float:
        ratio = batch / self.reference_batch
        return self.lr * {"sqrt": math.sqrt(ratio), "linear": ratio, "none": 1.0}[self.lr_scaling]


class OptimizerDriver:
    """The optimiser of a student, with every group's learning rate and weight decay set before each step."""

    def __init__(
        self, student: nn.ModuleDict, config: OptimizerConfig, batch: int, total_steps: int, heads_first: float = 0.0
    ) -> None:
        """`heads_first`: fraction of the run in which the backbone's weights, but for the mask token, do not move;
        its learning rate then rises to the others' over as many steps again."""
        self.config, self.total_steps = config, total_steps
        self.heads_first = int(heads_first * total_steps)
        self.student = student
        self.lr = Schedule(peak=config.peak_lr(batch), end=config.lr_end, warmup=config.warmup)
        self.weight_decay = Schedule(peak=config.weight_decay, end=config.weight_decay_end)
        groups = list(parameter_groups(student, config))
        self.adamw = torch.optim.AdamW(groups, betas=config.betas, fused=True)

    def set_schedules(self, step: int) -> float:
        """Set all groups for `step`; returns the learning rate of an ordinary one."""
        lr, decay = self.lr(step, self.total_steps), self.weight_decay(step, self.total_steps)
        frozen = step < int(self.config.freeze_prototypes * self.total_steps)
        thaw = min(max((step - self.heads_first) / self.heads_first, 0.0), 1.0) if self.heads_first else 1.0
        for group in self.adamw.param_groups:
            factor = 0.0 if frozen and group["kind"] == "prototypes" else thaw if group["kind"] == "backbone" else 1.0
            group["lr"] = lr * group["lr_factor"] * factor
            group["weight_decay"] = decay * group["decay_factor"]
        return lr

    def clip_gradients(self) -> dict[str, float]:
        """Clip each submodule's gradient to `clip_norm`; returns the norms before clipping."""
        return {
            name: float(whole(nn.utils.clip_grad_norm_(module.parameters(), self.config.clip_norm)))
            for name, module in self.student.items()
        }

    def state(self) -> dict[str, Tensor]:
        """AdamW's moments and step counts, by the name of their parameter."""
        return {
            f"{name}.{key}": value
            for name, parameter in self.student.named_parameters()
            for key, value in self.adamw.state[parameter].items()
        }

    def make_state(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Zeros in place of the moments and counts of those `names` (of `state`), to be filled from a checkpoint."""
        parameters = dict(self.student.named_parameters())
        for name in names:
            owner, key = name.rsplit(".", 1)
            if owner not in parameters:
                raise DinomedError(f"the checkpoint has a moment of {owner}, which this run's model has not")
            parameter = parameters[owner]
            zeros = parameter.new_zeros((), dtype=torch.float32) if key == "step" else torch.zeros_like(parameter)
            self.adamw.state[parameter][key] = zeros
        return self.state()


def parameter_groups(student: nn.ModuleDict, config: OptimizerConfig) -> Iterator[dict[str, Any]]:
    """Groups of equal factors: no decay on one-dimensional tensors (biases, norms, LayerScale), as in the reference;
    layer decay over the depth; the patch embedding slower; prototypes and backbone apart, to be frozen at first. What
    does not learn, as beside an adapter, is in none."""
    backbone = student["backbone"]
    assert isinstance(backbone, VisionTransformer)
    depth = backbone.config.depth
    groups: dict[tuple[float, float, str], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = config.layer_decay ** (depth + 1 - _layer(name, depth))
        if ".patch_embed." in name:
            factor *= config.patch_embed_lr
        decay = 0.0 if parameter.ndim == 1 else 1.0
        groups.setdefault((factor, decay, _kind(name)), []).append(parameter)
    for (factor, decay, kind), parameters in groups.items():
        yield {"params": parameters, "lr_factor": factor, "decay_factor": decay, "kind": kind}


def _kind(name: str) -> str:
    if name.endswith(".prototypes"):
        return "prototypes"
    return "backbone" if name.startswith("backbone.") and not name.endswith(".mask_token") else "other"


def _layer(name: str, depth: int) -> int:
    """0 for the embedding, 1 .. depth for the blocks, depth + 1 for the final norm and the heads."""
    parts = name.split(".")
    if parts[0] != "backbone" or parts[1] == "norm":
        return depth + 1
    return int(parts[2]) + 1 if parts[1] == "blocks" else 0
