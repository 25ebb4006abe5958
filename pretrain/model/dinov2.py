"""The DINOv2 method: a student learns from an exponential moving average of itself (Oquab et al. 2023, section 4).

Shape suffixes: V views, B images, K prototypes, M masked patches, C embedding width.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dinomed.backbones.config import ViTConfig
from dinomed.backbones.vit import Tokens, VisionTransformer
from dinomed.distributed import gather_rows
from dinomed.pretrain.distributed.parallel import local_shard
from dinomed.pretrain.losses.cross_entropy import dino_loss, ibot_loss
from dinomed.pretrain.losses.gram import gram_loss, reduce_patches
from dinomed.pretrain.losses.koleo import koleo_loss
from dinomed.pretrain.losses.pixels import hog_targets, masked_regression_loss, num_values, pixel_targets
from dinomed.pretrain.losses.queue import MemoryQueue
from dinomed.pretrain.losses.targets import Center, sinkhorn_knopp
from dinomed.pretrain.model.config import ObjectiveConfig
from dinomed.pretrain.model.heads import ProjectionHead
from dinomed.pretrain.model.lora import plain_parameters
from dinomed.pretrain.model.predictor import MaskedPatchPredictor


@dataclass(frozen=True)
class ViewBatch:
    """Normalised float views of B images, sorted by view: row ``v * B + b`` is view v of image b."""

    globals: Tensor  # 2B, channels, s, s
    locals: Tensor  # V'B, channels, t, t (V' may be 0)
    masks: Tensor  # 2B, patches, bool
    masked: Tensor  # M, indices into the flattened masks
    mask_weights: Tensor  # M, 1 / (masked patches of the view)
    anchors: Tensor | None = None  # 2B, channels, 2s, 2s: `globals` at twice the resolution, for `gram_scale` 2


@dataclass(frozen=True)
class Losses:
    """The losses before their weights, and their weighted sum."""

    total: Tensor
    terms: dict[str, Tensor]
    targets: Tensor | None  # 2, B, K: targets of the class tokens, for the training metrics
    cls: Tensor | None = None  # 2B, C: the student's class tokens of the global views, for the training metrics


class DINOv2(nn.Module):
    """Student and EMA teacher. A loss of weight zero and its head are not built; each loss works without the others."""

    def __init__(self, backbone: ViTConfig, objective: ObjectiveConfig) -> None:
        super().__init__()
        self.objective = objective
        self.student = build_side(backbone, objective)
        self.teacher = copy.deepcopy(self.student).eval().requires_grad_(False)
        self.centers = nn.ModuleDict()
        if objective.targets == "centering":
            for name in ("dino", "ibot"):
                if getattr(objective, f"{name}_weight"):
                    num_prototypes = self._head(self.teacher, name).prototypes.shape[0]
                    self.centers[name] = Center(num_prototypes, objective.center_momentum)
        self.anchor: nn.ModuleDict | None = None
        if objective.gram_weight:
            self.anchor = nn.ModuleDict({"backbone": copy.deepcopy(backbone_of(self.teacher))})
        self.pixel_weight, self.is_anchored = objective.pixel_weight, False
        self.queues = nn.ModuleDict()
        if objective.queue and objective.dino_weight and objective.targets == "sinkhorn":
            num_prototypes = self._head(self.teacher, "dino").prototypes.shape[0]
            self.queues["logits"] = MemoryQueue(2 * objective.queue, num_prototypes)
        if objective.queue and objective.koleo_weight:
            for view in ("first", "second") if objective.koleo_views == "both" else ("first",):
                self.queues[view] = MemoryQueue(objective.queue, backbone.embed_dim)

    def set_step(self, step: int, total: int) -> None:
        """Set the weights that change during the run, and the anchor of Gram anchoring at its steps."""
        self.pixel_weight = self.objective.pixel_weight_at(step, total)
        if self.anchor is not None:
            self.is_anchored = step >= self.objective.gram_first_step(total)
            if self.objective.is_gram_refresh(step, total):
                update_ema(backbone_of(self.anchor), backbone_of(self.teacher), 0.0)

    @staticmethod
    def _head(side: nn.ModuleDict, name: str) -> ProjectionHead:
        """Return the head of a loss; with tied heads both losses use the DINO head."""
        head = side[f"{name}_head" if f"{name}_head" in side else "dino_head"]
        assert isinstance(head, ProjectionHead)
        return head

    def _queue(self, name: str) -> MemoryQueue | None:
        if name not in self.queues:
            return None
        queue = self.queues[name]
        assert isinstance(queue, MemoryQueue)
        return queue

    @property
    def sides(self) -> tuple[nn.ModuleDict, ...]:
        """All modules with weights: the student first, the one that holds the EMA backbone last."""
        return (self.student, self.teacher) if self.anchor is None else (self.student, self.anchor, self.teacher)

    @property
    def ema_backbone(self) -> VisionTransformer:
        """The backbone that the run saves: the teacher's."""
        return backbone_of(self.teacher)

    def prepare_batch(self, batch: ViewBatch) -> ViewBatch:
        """Return the batch with the masks that this method uses."""
        return batch

    def train(self, mode: bool = True) -> "DINOv2":
        """Set the training mode of the student; the teacher stays in evaluation mode (no stochastic depth)."""
        super().train(mode)
        self.teacher.eval()
        if self.anchor is not None:
            self.anchor.eval()
        return self

    @torch.no_grad()
    def teacher_logits(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Compute the teacher's logits: ``dino`` (2, B, K) and ``ibot`` (M, K), each if its loss has a weight."""
        tokens = backbone_of(self.teacher).forward_packed([batch.globals], [None])[0]
        logits = {}
        if self.objective.dino_weight:
            logits["dino"] = self._head(self.teacher, "dino")(tokens.cls).unflatten(0, (2, -1))
        if self.objective.ibot_weight:
            logits["ibot"] = self._head(self.teacher, "ibot")(tokens.patches.flatten(0, 1)[batch.masked])
        return logits

    def make_targets(self, logits: dict[str, Tensor], temperature: float) -> dict[str, Tensor]:
        """Compute targets of the same shapes from the teacher's logits of the whole batch."""
        return {
            name: self._targets(name, rows.flatten(0, -2), temperature).view_as(rows) for name, rows in logits.items()
        }

    @torch.no_grad()
    def _targets(self, name: str, logits_BK: Tensor, temperature: float) -> Tensor:
        if self.objective.targets == "sinkhorn":
            queue = self._queue("logits") if name == "dino" else None
            if queue is None:
                return sinkhorn_knopp(logits_BK, temperature)
            targets_BK = sinkhorn_knopp(torch.cat([logits_BK, queue.rows(logits_BK)]), temperature)[: len(logits_BK)]
            queue.add(logits_BK)
            return targets_BK
        center = self.centers[name]
        assert isinstance(center, Center)
        targets: Tensor = center(logits_BK, temperature)
        return targets

    def student_tokens(self, batch: ViewBatch) -> list[Tokens]:
        """Compute the student's tokens of the masked global views and, if there are any, of the local views."""
        crops, masks, visible = [batch.globals], [batch.masks if self.objective.needs_masks else None], None
        if self.objective.predictor_depth:
            masks, visible = [None], [~batch.masks, *([None] if len(batch.locals) else [])]
        if len(batch.locals):
            crops.append(batch.locals)
            masks.append(None)
        return backbone_of(self.student).forward_packed(crops, masks, visible)

    def _masked_tokens(self, batch: ViewBatch, tokens: Tokens) -> Tensor:
        """Return the student's tokens (M, C) of the masked patches, from the encoder or from the predictor."""
        if not self.objective.predictor_depth:
            return tokens.patches.flatten(0, 1)[batch.masked]
        predicted: Tensor = self.student["predictor"](tokens, batch.masks)
        return predicted.flatten(0, 1)

    def image_losses(self, batch: ViewBatch, tokens: list[Tokens], targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the losses that are means over images: ``dino``, ``ibot``, ``pixel`` and ``gram``."""
        objective, num_views, terms = self.objective, len(batch.globals), {}
        temperature = objective.student_temperature
        if objective.dino_weight:
            cls = torch.cat([view.cls for view in tokens]).unflatten(0, (-1, num_views // 2))
            terms["dino"] = dino_loss(self._head(self.student, "dino")(cls), targets["dino"], temperature)
        masked = self._masked_tokens(batch, tokens[0]) if objective.needs_masks else None
        if masked is not None and objective.ibot_weight:
            logits = self._head(self.student, "ibot")(masked)
            terms["ibot"] = ibot_loss(logits, targets["ibot"], batch.mask_weights, num_views, temperature)
        if masked is not None and objective.pixel_weight:
            describe = pixel_targets if objective.pixel_target == "pixels" else hog_targets
            values = describe(batch.globals, backbone_of(self.student).config.patch_size).flatten(0, 1)[batch.masked]
            predicted = self.student["pixel_head"](masked)
            terms["pixel"] = masked_regression_loss(predicted, values, batch.mask_weights, num_views)
        if self.anchor is not None:
            terms["gram"] = self._gram_loss(batch, tokens[0].patches)
        return terms

    def _gram_loss(self, batch: ViewBatch, patches: Tensor) -> Tensor:
        """Compute Gram anchoring on the global views; 0 before its start."""
        if not self.is_anchored or self.anchor is None:
            return patches.sum() * 0.0
        scale, patch_size = self.objective.gram_scale, backbone_of(self.anchor).patch_size
        views = batch.globals if scale == 1 else batch.anchors
        assert views is not None
        with torch.no_grad():
            anchors = backbone_of(self.anchor).forward_packed([views], [None])[0].patches
            rows, columns = (side // patch_size for side in batch.globals.shape[-2:])
            anchors = reduce_patches(anchors, (rows, columns), scale)
        return gram_loss(patches, anchors)

    def koleo_loss(self, cls_2BC: Tensor) -> Tensor:
        """Compute KoLeo on the class tokens of the global views, with neighbours among those of all ranks.

        The paper uses the tokens of one device only, which makes the loss depend on the number of devices.
        """
        views = {"first": gather_rows(cls_2BC[0])}
        if self.objective.koleo_views == "both":
            views["second"] = gather_rows(cls_2BC[1])
        losses = []
        for name, cls_BC in views.items():
            queue = self._queue(name)
            losses.append(koleo_loss(cls_BC, None if queue is None else queue.rows(cls_BC)))
            if queue is not None:
                queue.add(cls_BC)
        return torch.stack(losses).sum()

    def weighted_sum(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the sum of the losses, each times its weight."""
        weights = {name: getattr(self.objective, f"{name}_weight") for name in terms} | {"pixel": self.pixel_weight}
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum()

    def forward(self, batch: ViewBatch, temperature: float) -> Losses:
        """Compute the losses of a prepared batch at a teacher temperature."""
        targets = self.make_targets(self.teacher_logits(batch), temperature)
        tokens = self.student_tokens(batch)
        terms = self.image_losses(batch, tokens, targets)
        if self.objective.koleo_weight:
            terms["koleo"] = self.koleo_loss(tokens[0].cls.unflatten(0, (2, -1)))
        detached = {name: term.detach() for name, term in terms.items()}
        return Losses(self.weighted_sum(terms), detached, targets.get("dino"), tokens[0].cls.detach())

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Set ``teacher = momentum * teacher + (1 - momentum) * student``."""
        update_ema(self.teacher, self.student, momentum)


def build_side(backbone: ViTConfig, objective: ObjectiveConfig) -> nn.ModuleDict:
    """Build a student or a teacher: a backbone, and the heads of the losses with a weight."""
    side = nn.ModuleDict({"backbone": VisionTransformer(backbone)})
    for name in objective.head_names:
        side[name] = ProjectionHead(backbone.embed_dim, getattr(objective, name))
    if objective.predictor_depth:
        side["predictor"] = MaskedPatchPredictor(backbone, objective.predictor_depth)
    if objective.pixel_weight:
        values = num_values(objective.pixel_target, backbone.patch_size, backbone.in_channels)
        side["pixel_head"] = nn.Linear(backbone.embed_dim, values)
    return side


def backbone_of(side: nn.ModuleDict) -> VisionTransformer:
    """Return the backbone of a student or a teacher."""
    backbone = side["backbone"]
    assert isinstance(backbone, VisionTransformer)
    return backbone


def update_ema(average: nn.Module, student: nn.Module, momentum: float) -> None:
    """Set ``average = momentum * average + (1 - momentum) * student``, in place and in one call for all weights.

    LoRA adapters of the student, if it has any, are merged into its weights first.
    """
    torch._foreach_lerp_(
        [local_shard(p) for p in average.parameters()],
        [local_shard(p) for _, p in plain_parameters(student)],
        1 - momentum,
    )
