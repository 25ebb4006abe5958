"""Distillation of a frozen teacher into a smaller student (Oquab et al. 2023, section 5, "model distillation").

The training loop is that of DINOv2 with a larger, frozen teacher and its heads. There are no masks and no stochastic
depth; the iBOT loss is computed on all patch tokens of both global views; the run saves an exponential moving average
of the student. The authors released no code for it.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dinomed.backbones.config import ViTConfig
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import TokenModel, VisionTransformer
from dinomed.errors import DinomedError
from dinomed.pretrain.model.config import ObjectiveConfig
from dinomed.pretrain.model.dinov2 import DINOv2, ViewBatch, backbone_of, build_side, update_ema


@dataclass(frozen=True)
class Teacher:
    """A teacher: its settings, and the weights of its backbone and, unless its objective has no loss, of its heads.

    Attributes:
        model: a backbone of another library, whose features are matched. `backbone` then describes its size only.
    """

    backbone: ViTConfig
    objective: ObjectiveConfig
    preprocessing: Preprocessing
    weights: dict[str, Tensor]
    model: TokenModel | None = None


class Distillation(DINOv2):
    """A student that learns from a frozen teacher. `ema_backbone` is the moving average of the student."""

    def __init__(self, backbone: ViTConfig, objective: ObjectiveConfig, teacher: Teacher) -> None:
        super().__init__(backbone, objective)
        self.average = self.teacher  # a copy of the untrained student
        if teacher.model is None:
            side = build_side(teacher.backbone, teacher.objective)
        else:
            side = nn.ModuleDict({"backbone": teacher.model})
        self.teacher = side.eval().requires_grad_(False)
        try:
            self.teacher.load_state_dict(teacher.weights)
        except RuntimeError as error:  # one line for each tensor
            raise DinomedError(
                f"the teacher's checkpoint does not fit its config ({str(error).splitlines()[1].strip()[:200]}); "
                "use another teacher"
            ) from None

    @property
    def sides(self) -> tuple[nn.ModuleDict, ...]:
        """Student, teacher, and moving average of the student."""
        return (self.student, self.teacher, self.average)

    @property
    def ema_backbone(self) -> VisionTransformer:
        """The backbone that the run saves: the moving average of the student's."""
        return backbone_of(self.average)

    def train(self, mode: bool = True) -> "Distillation":
        """Set the training mode of the student; teacher and moving average stay in evaluation mode."""
        super().train(mode)
        if hasattr(self, "average"):
            self.average.eval()
        return self

    def prepare_batch(self, batch: ViewBatch) -> ViewBatch:
        """Return the batch without masks and with all patches of the global views in the iBOT loss."""
        num_views, num_patches = batch.masks.shape
        all_patches = torch.arange(num_views * num_patches, device=batch.masks.device)
        weights = torch.full((len(all_patches),), 1 / num_patches, device=batch.masks.device)
        return replace(batch, masks=torch.zeros_like(batch.masks), masked=all_patches, mask_weights=weights)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move the average of the student; the teacher does not change."""
        update_ema(self.average, self.student, momentum)
