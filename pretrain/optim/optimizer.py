"""AdamW (or Muon and AdamW) with DINOv2's parameter groups, and the schedules of learning rates and weight decay."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dinomed.backbones.vit import VisionTransformer
from dinomed.errors import DinomedError
from dinomed.pretrain.distributed.parallel import full_tensor
from dinomed.pretrain.optim.config import OptimizerConfig
from dinomed.pretrain.optim.schedules import Schedule


class OptimizerDriver:
    """The optimiser of a student. The learning rate and weight decay of each group are set before each step."""

    def __init__(
        self, student: nn.ModuleDict, config: OptimizerConfig, batch: int, total_steps: int, heads_first: float = 0.0
    ) -> None:
        """Build AdamW, and Muon for the matrices if the config says so.

        Args:
            batch: images per step, over all processes.
            heads_first: fraction of the run in which the backbone does not learn, except for the mask token. Its
                learning rate then rises to that of the other groups over the same number of steps.
        """
        self.config, self.total_steps = config, total_steps
        self.heads_first = int(heads_first * total_steps)
        self.student = student
        self.lr = Schedule(peak=config.peak_lr(batch), end=config.lr_end, warmup=config.warmup)
        self.weight_decay = Schedule(peak=config.weight_decay, end=config.weight_decay_end)
        groups = list(parameter_groups(student, config))
        self.adamw = torch.optim.AdamW(
            [group for group in groups if group["optimizer"] == "adamw"], betas=config.betas, fused=True
        )
        self.optimizers: list[torch.optim.Optimizer] = [self.adamw]
        muon_groups = [group for group in groups if group["optimizer"] == "muon"]
        if muon_groups:
            # with this adjustment a step has the root mean square of a step of AdamW (Liu et al. 2025, arXiv
            # 2502.16982, section 2.2), so learning rate and weight decay are those of AdamW
            self.optimizers.append(
                torch.optim.Muon(muon_groups, momentum=config.muon_momentum, adjust_lr_fn="match_rms_adamw")
            )

    def set_schedules(self, step: int) -> float:
        """Set all groups for `step`, and return the learning rate before the factors of the groups."""
        lr, decay = self.lr(step, self.total_steps), self.weight_decay(step, self.total_steps)
        frozen = step < int(self.config.freeze_prototypes * self.total_steps)
        unfreeze = min(max((step - self.heads_first) / self.heads_first, 0.0), 1.0) if self.heads_first else 1.0
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            factor = (
                0.0 if frozen and group["kind"] == "prototypes" else unfreeze if group["kind"] == "backbone" else 1.0
            )
            group["lr"] = lr * group["lr_factor"] * factor
            group["weight_decay"] = decay * group["decay_factor"]
        return lr

    def zero_grad(self) -> None:
        """Remove all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def unscale(self, scaler: torch.amp.GradScaler) -> None:
        """Divide all gradients by the scale of `scaler`."""
        for optimizer in self.optimizers:
            scaler.unscale_(optimizer)

    def take_step(self, scaler: torch.amp.GradScaler) -> None:
        """Update all weights that learn."""
        for optimizer in self.optimizers:
            scaler.step(optimizer)

    def clip_gradients(self) -> dict[str, float]:
        """Clip the gradient of each submodule to `clip_norm`, and return the norms before clipping."""
        return {
            name: float(full_tensor(nn.utils.clip_grad_norm_(module.parameters(), self.config.clip_norm)))
            for name, module in self.student.items()
        }

    def state(self) -> dict[str, Tensor]:
        """Return the moments and step counts of the optimisers, by the name of their parameter."""
        return {
            f"{name}.{key}": value
            for name, parameter in self.student.named_parameters()
            for optimizer in self.optimizers
            for key, value in optimizer.state.get(parameter, {}).items()
        }

    def make_state(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Allocate the moments and counts of these names (as in `state`) as zeros, to be read from a checkpoint."""
        parameters = dict(self.student.named_parameters())
        for name in names:
            parameter_name, key = name.rsplit(".", 1)
            if parameter_name not in parameters:
                raise DinomedError(
                    f"the checkpoint has the optimiser state of {parameter_name}, which this run's model lacks; "
                    "resume with the settings of the run"
                )
            parameter = parameters[parameter_name]
            zeros = parameter.new_zeros((), dtype=torch.float32) if key == "step" else torch.zeros_like(parameter)
            optimizer = self.optimizers[-1] if key == "momentum_buffer" else self.adamw  # the name in Muon
            optimizer.state[parameter][key] = zeros
        return self.state()


def parameter_groups(student: nn.ModuleDict, config: OptimizerConfig) -> Iterator[dict[str, Any]]:
    """Yield groups of parameters with equal factors on learning rate and weight decay.

    One-dimensional tensors (biases, norms, LayerScale) have no weight decay, as in the reference code. The learning
    rate decays over the depth and is lower in the patch embedding. Prototypes and backbone are separate groups, so that
    they can be frozen. Parameters that do not learn, such as those beside an adapter, are in no group.
    """
    backbone = student["backbone"]
    assert isinstance(backbone, VisionTransformer)
    depth = backbone.config.depth
    groups: dict[tuple[float, float, str, str], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = config.layer_decay ** (depth + 1 - _layer(name, depth))
        if ".patch_embed." in name:
            factor *= config.patch_embed_lr
        decay = 0.0 if parameter.ndim == 1 else 1.0
        optimizer: str = config.matrices if _is_hidden_matrix(name, parameter) else "adamw"
        groups.setdefault((factor, decay, _kind(name), optimizer), []).append(parameter)
    for (factor, decay, kind, optimizer), parameters in groups.items():
        yield {
            "params": parameters, "lr_factor": factor, "decay_factor": decay, "kind": kind, "optimizer": optimizer
        }  # fmt: skip


def _is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter is a matrix of a block or of the MLP of a head; embeddings and outputs are not."""
    return parameter.ndim == 2 and name.endswith(".weight") and (".blocks." in name or ".mlp." in name)


def _kind(name: str) -> str:
    if name.endswith((".prototypes", ".prototype_norms")):
        return "prototypes"
    return "backbone" if name.startswith("backbone.") and not name.endswith(".mask_token") else "other"


def _layer(name: str, depth: int) -> int:
    """Return 0 for the embedding, 1 .. depth for the blocks, depth + 1 for the final norm and the heads."""
    parts = name.split(".")
    if parts[0] != "backbone" or parts[1] == "norm":
        return depth + 1
    return int(parts[2]) + 1 if parts[1] == "blocks" else 0
