"""Distillation as DINOv2 does it (Oquab et al. 2023, section 5, "model distillation"; no code of it was released).

The same loop with a larger, frozen teacher and its heads; no masks; no stochastic depth; iBOT on all patch tokens of
both global views; the result is a spare moving average of the student.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dinomed.backbones.vit import VisionTransformer, ViTConfig
from dinomed.config import build_config, merge, parse_yaml
from dinomed.errors import DinomedError, UsageError
from dinomed.io.checkpoint import DamagedCheckpoints, newest_checkpoint, read_whole
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.model.dinov2 import Batch, DINOv2, average, backbone_of, build_side
from dinomed.pretrain.run_folder import CHECKPOINTS, CONFIG_FILE


@dataclass(frozen=True)
class Teacher:
    """A finished run's teacher: its settings, and the weights of backbone and heads."""

    config: PretrainConfig
    state: dict[str, Tensor]


def read_teacher(folder: Path) -> Teacher:
    """The teacher of a run folder.

    Raises:
        UsageError: it is no run folder; released backbones have no heads, which have to be fitted first.
        DinomedError: it is damaged.
    """
    path = folder / CONFIG_FILE
    try:
        found = newest_checkpoint(folder / CHECKPOINTS)
    except DamagedCheckpoints as error:
        raise DinomedError(
            f"teacher {folder} is damaged: {error}; give a whole copy of it, or another teacher"
        ) from None
    if not path.is_file() or found is None:
        raise UsageError(
            f"teacher {folder} is no run with a checkpoint. A backbone alone has no heads to teach with: fit them "
            f"first, with the backbone frozen (dinomed pretrain CONFIG --from {folder} --set start.warmup=1 -o RUN)"
        )
    config = build_config(PretrainConfig, parse_yaml(path.read_text(encoding="utf-8"), str(path)), str(path))
    return Teacher(config, read_whole(found[0], "model.teacher."))


def fit_student(config: PretrainConfig, teacher: Teacher) -> PretrainConfig:
    """A student's config, with what it must share with its teacher: prototypes, weights of the terms, tied heads or
    not, normalisation, channels; without masks and stochastic depth.

    Raises:
        UsageError: the patch sizes differ, so that patch tokens cannot be compared; or the channels do.
    """
    theirs, channels = teacher.config, config.backbone.in_channels
    if channels not in (theirs.backbone.in_channels, ViTConfig.model_fields["in_channels"].default):
        raise UsageError(
            f"the teacher takes {theirs.backbone.in_channels} channels, the student {channels} (backbone.in_channels): "
            "both see the same images; leave the setting out"
        )
    if theirs.backbone.patch_size != config.backbone.patch_size:
        raise UsageError(
            f"the teacher's patches are {theirs.backbone.patch_size} px, the student's {config.backbone.patch_size}: "
            "patch tokens can be compared only if they are alike; set backbone.patch_size"
        )
    objective = theirs.objective.model_dump(include={"untied_heads", "dino_weight", "ibot_weight", "targets"})
    for head in ("dino_head", "ibot_head"):
        objective[head] = {"prototypes": getattr(theirs.objective, head).prototypes}
    delta = {
        "backbone": {"drop_path": 0.0, "in_channels": theirs.backbone.in_channels},
        "objective": objective,
        "mean": theirs.mean,
        "std": theirs.std,
        "images": theirs.images.model_dump(),
    }
    return build_config(PretrainConfig, merge(config.model_dump(), delta), "distillation")


class Distillation(DINOv2):
    """A student that learns from a frozen teacher; `result` is the student's moving average."""

    def __init__(self, config: PretrainConfig, teacher: Teacher) -> None:
        super().__init__(config.backbone, config.objective)
        self.average = self.teacher  # a copy of the student as it begins
        self.teacher = build_side(teacher.config.backbone, teacher.config.objective).eval().requires_grad_(False)
        try:
            self.teacher.load_state_dict(teacher.state)
        except RuntimeError as error:  # names every tensor, a line each
            raise DinomedError(
                f"the teacher's checkpoint does not fit its {CONFIG_FILE} ({str(error).splitlines()[1].strip()[:200]})"
            ) from None

    @property
    def sides(self) -> tuple[nn.ModuleDict, ...]:
        return (self.student, self.teacher, self.average)

    @property
    def result(self) -> VisionTransformer:
        return backbone_of(self.average)

    def train(self, mode: bool = True) -> "Distillation":
        super().train(mode)
        if hasattr(self, "average"):
            self.average.eval()
        return self

    def prepare(self, batch: Batch) -> Batch:
        """The same views without masks; every patch of the global ones counts."""
        num_views, num_patches = batch.masks.shape
        everything = torch.arange(num_views * num_patches, device=batch.masks.device)
        weights = torch.full((len(everything),), 1 / num_patches, device=batch.masks.device)
        return replace(batch, masks=torch.zeros_like(batch.masks), masked=everything, mask_weights=weights)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        average(self.average, self.student, momentum)
