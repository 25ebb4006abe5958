"""Distillation of any frozen backbone by its features: no heads, no prototypes.

A linear layer projects the student's tokens to the width of the teacher. The projections of class token and patch
tokens of both global views are compared with the teacher's, after its final norm (as lightly-train's distillation does
with patch tokens). The backbones may differ in patch size: the teacher gets the view resized to the student's grid of
patches. A teacher that takes images of one size only gets them, and its patch tokens are resized to this grid.

Shape suffixes: V views, B images, P patches, D width of the teacher.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate

from dinomed.backbones.config import ViTConfig
from dinomed.backbones.vit import TokenModel, Tokens
from dinomed.pretrain.model.config import DistillationConfig, ObjectiveConfig
from dinomed.pretrain.model.dinov2 import ViewBatch, backbone_of
from dinomed.pretrain.model.distillation import Distillation, Teacher

NO_LOSSES = ObjectiveConfig(dino_weight=0, ibot_weight=0, koleo_weight=0)
"""Objective of a side without heads."""


class FeatureDistillation(Distillation):
    """A student whose projected tokens follow those of a frozen backbone. It has no local views and no masks."""

    def __init__(self, backbone: ViTConfig, teacher: Teacher, config: DistillationConfig) -> None:
        super().__init__(backbone, NO_LOSSES, teacher)
        self.config = config
        self.student["projector"] = nn.Linear(backbone.embed_dim, teacher.backbone.embed_dim)
        self.average["projector"] = copy.deepcopy(self.student["projector"]).requires_grad_(False)

    def prepare_batch(self, batch: ViewBatch) -> ViewBatch:
        """Return the batch unchanged; its masks are not used."""
        return batch

    @torch.no_grad()
    def teacher_logits(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Compute the teacher's class tokens (2, B, D) and patch tokens (2BP, D) of the global views."""
        model, views = self.teacher["backbone"], batch.globals
        assert isinstance(model, TokenModel)
        grid = [side // backbone_of(self.student).patch_size for side in views.shape[-2:]]
        teacher_grid = grid if model.fixed_size is None else [model.fixed_size // model.patch_size] * 2
        sides = [count * model.patch_size for count in teacher_grid]
        if sides != list(views.shape[-2:]):
            views = interpolate(views, sides, mode="bicubic", antialias=True, align_corners=False)
        tokens = model.forward_blocks(views, [-1])[0]
        patches_VPD = tokens.patches if teacher_grid == grid else _resize_grid(tokens.patches, teacher_grid, grid)
        return {"class": tokens.cls.unflatten(0, (2, -1)), "patch": patches_VPD.flatten(0, 1)}

    def make_targets(self, logits: dict[str, Tensor], temperature: float) -> dict[str, Tensor]:
        """Return the teacher's tokens, which are the targets themselves."""
        return logits

    def image_losses(self, batch: ViewBatch, tokens: list[Tokens], targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the losses on class tokens and on patch tokens; both are means over images."""
        projector, terms = self.student["projector"], {}
        if self.config.class_weight:
            terms["class"] = self._compare(projector(tokens[0].cls), targets["class"].flatten(0, 1))
        if self.config.patch_weight:
            terms["patch"] = self._compare(projector(tokens[0].patches.flatten(0, 1)), targets["patch"])
        return terms

    def _compare(self, projected: Tensor, target: Tensor) -> Tensor:
        """Compute the mean loss of rows (rows, D), in float32."""
        with torch.autocast(projected.device.type, enabled=False):
            projected, target = projected.float(), target.float()
            if self.config.loss == "mse":
                return (projected - target).square().mean()
            return 1 - cosine_similarity(projected, target, dim=-1).mean()

    def weighted_sum(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the sum of the losses, each times its weight."""
        return torch.stack([getattr(self.config, f"{name}_weight") * term for name, term in terms.items()]).sum()


def _resize_grid(patches_VPD: Tensor, teacher_grid: list[int], grid: list[int]) -> Tensor:
    """Resize patch tokens of a grid `teacher_grid` (rows, columns) to another grid, bicubic, in float32."""
    maps = patches_VPD.float().transpose(1, 2).unflatten(2, teacher_grid)
    return interpolate(maps, grid, mode="bicubic", antialias=True, align_corners=False).flatten(2).transpose(1, 2)
