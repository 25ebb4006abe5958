"""DINOv2's objective: a student learns from its own moving average (Oquab et al. 2023, section 4).

Shape suffixes: V views, B images, K prototypes, M masked patches.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dinomed.backbones.vit import Tokens, VisionTransformer, ViTConfig
from dinomed.config import Config
from dinomed.distributed import gather_rows
from dinomed.pretrain.distributed.parallel import local
from dinomed.pretrain.losses import Center, dino_loss, ibot_loss, koleo, sinkhorn_knopp
from dinomed.pretrain.model.heads import Head, HeadConfig
from dinomed.pretrain.model.lora import plain_parameters
from dinomed.pretrain.optim.schedules import Schedule


class ObjectiveConfig(Config):
    dino_weight: float = Field(1.0, ge=0)
    ibot_weight: float = Field(1.0, ge=0)
    koleo_weight: float = Field(0.1, ge=0)
    koleo_views: Literal["both", "first"] = Field("both", description="the code uses both global views, the paper one")
    targets: Literal["sinkhorn", "centering"] = "sinkhorn"
    center_momentum: float = Field(0.9, ge=0, lt=1)
    untied_heads: bool = True
    dino_head: HeadConfig = HeadConfig()
    ibot_head: HeadConfig = HeadConfig()
    student_temperature: float = Field(0.1, gt=0)


class TeacherConfig(Config):
    momentum: float = Field(0.992, ge=0, le=1)
    momentum_end: float = Field(1.0, ge=0, le=1)
    temperature: float = Field(0.07, gt=0)
    temperature_start: float = Field(0.04, gt=0)
    temperature_warmup: float = Field(0.3, ge=0, lt=1, description="fraction of the run; 37,500 of 125,000 iterations")

    def momentum_at(self, step: int, total: int) -> float:
        return Schedule(peak=self.momentum, end=self.momentum_end)(step, total)

    def temperature_at(self, step: int, total: int) -> float:
        end = self.temperature
        return Schedule(start=self.temperature_start, peak=end, end=end, warmup=self.temperature_warmup)(step, total)


@dataclass(frozen=True)
class Batch:
    """Views of B images, view by view: row ``v * B + b`` is view v of image b. Images are float, normalised."""

    globals: Tensor  # 2B, channels, s, s
    locals: Tensor  # V'B, channels, t, t (V' may be 0)
    masks: Tensor  # 2B, patches, bool
    masked: Tensor  # M, indices into the flattened masks
    mask_weights: Tensor  # M, 1 / (masked patches of the view)


@dataclass(frozen=True)
class Losses:
    """Each term before its weight, and their weighted sum."""

    total: Tensor
    terms: dict[str, Tensor]
    targets: Tensor | None  # 2, B, K: what the teacher asked for on class tokens, for the monitor
    cls: Tensor | None = None  # 2B, C: the student's class tokens of the global views, for the monitor


class DINOv2(nn.Module):
    """Student and teacher. Terms of weight zero, and their heads, are not built: each term runs without the others."""

    def __init__(self, backbone: ViTConfig, objective: ObjectiveConfig) -> None:
        super().__init__()
        self.objective = objective
        self.student = build_side(backbone, objective)
        self.teacher = copy.deepcopy(self.student).eval().requires_grad_(False)
        self.centers = nn.ModuleDict()
        if objective.targets == "centering":
            for name in ("dino", "ibot"):
                if getattr(objective, f"{name}_weight"):
                    prototypes = self._head(self.teacher, name).prototypes.shape[0]
                    self.centers[name] = Center(prototypes, objective.center_momentum)

    @staticmethod
    def _head(side: nn.ModuleDict, name: str) -> Head:
        """The head of a term; with tied heads both terms use DINO's."""
        head = side[f"{name}_head" if f"{name}_head" in side else "dino_head"]
        assert isinstance(head, Head)
        return head

    @property
    def sides(self) -> tuple[nn.ModuleDict, ...]:
        """All that has weights; the student first."""
        return (self.student, self.teacher)

    @property
    def result(self) -> VisionTransformer:
        """The backbone that a run is for: the teacher's."""
        return backbone_of(self.teacher)

    def prepare(self, batch: Batch) -> Batch:
        """The batch as this method wants it."""
        return batch

    def train(self, mode: bool = True) -> "DINOv2":
        super().train(mode)
        self.teacher.eval()  # no stochastic depth in the teacher
        return self

    @torch.no_grad()
    def _targets(self, name: str, scores: Tensor, temperature: float) -> Tensor:
        if self.objective.targets == "sinkhorn":
            return sinkhorn_knopp(scores, temperature)
        center = self.centers[name]
        assert isinstance(center, Center)
        targets: Tensor = center(scores, temperature)
        return targets

    @torch.no_grad()
    def score(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's scores: ``dino`` (2, B, K) and ``ibot`` (M, K), as far as their terms are on."""
        tokens = backbone_of(self.teacher).forward_packed([batch.globals], [None])[0]
        scores = {}
        if self.objective.dino_weight:
            scores["dino"] = self._head(self.teacher, "dino")(tokens.cls).unflatten(0, (2, -1))
        if self.objective.ibot_weight:
            scores["ibot"] = self._head(self.teacher, "ibot")(tokens.patches.flatten(0, 1)[batch.masked])
        return scores

    def make_targets(self, scores: dict[str, Tensor], temperature: float) -> dict[str, Tensor]:
        """Scores, as `score` gives them, to targets of the same shapes; all rows of the batch take part."""
        return {
            name: self._targets(name, rows.flatten(0, -2), temperature).view_as(rows) for name, rows in scores.items()
        }

    def view(self, batch: Batch) -> list[Tokens]:
        """The student's tokens: of the global views, masked, and of the local ones if there are any."""
        crops, masks = [batch.globals], [batch.masks if self.objective.ibot_weight else None]
        if len(batch.locals):
            crops.append(batch.locals)
            masks.append(None)
        return backbone_of(self.student).forward_packed(crops, masks)

    def compare(self, batch: Batch, views: list[Tokens], targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms that are means over images: ``dino`` and ``ibot``."""
        o, num_views, terms = self.objective, len(batch.globals), {}
        if o.dino_weight:
            cls = torch.cat([view.cls for view in views]).unflatten(0, (-1, num_views // 2))
            terms["dino"] = dino_loss(self._head(self.student, "dino")(cls), targets["dino"], o.student_temperature)
        if o.ibot_weight:
            patches = views[0].patches.flatten(0, 1)[batch.masked]
            scores = self._head(self.student, "ibot")(patches)
            terms["ibot"] = ibot_loss(scores, targets["ibot"], batch.mask_weights, num_views, o.student_temperature)
        return terms

    def spread(self, cls_2BC: Tensor) -> Tensor:
        """KoLeo on the class tokens of the global views, among those of all ranks: a neighbour in the batch is one
        wherever it lies (the paper looks on one device only, which ties the loss to the number of devices)."""
        first, second = (gather_rows(view) for view in cls_2BC)
        return koleo(first) + koleo(second) if self.objective.koleo_views == "both" else koleo(first)

    def weigh(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the terms."""
        return torch.stack([getattr(self.objective, f"{name}_weight") * term for name, term in terms.items()]).sum()

    def forward(self, batch: Batch, temperature: float) -> Losses:
        """The losses of a prepared batch at a teacher temperature."""
        targets = self.make_targets(self.score(batch), temperature)
        views = self.view(batch)
        terms = self.compare(batch, views, targets)
        if self.objective.koleo_weight:
            terms["koleo"] = self.spread(views[0].cls.unflatten(0, (2, -1)))
        detached = {name: term.detach() for name, term in terms.items()}
        return Losses(self.weigh(terms), detached, targets.get("dino"), views[0].cls.detach())

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """``teacher = momentum * teacher + (1 - momentum) * student``."""
        average(self.teacher, self.student, momentum)


def build_side(backbone: ViTConfig, objective: ObjectiveConfig) -> nn.ModuleDict:
    """A student or a teacher: a backbone and the heads of the terms that are on."""
    side = nn.ModuleDict({"backbone": VisionTransformer(backbone)})
    if objective.dino_weight:
        side["dino_head"] = Head(backbone.embed_dim, objective.dino_head)
    if objective.ibot_weight and (objective.untied_heads or not objective.dino_weight):
        side["ibot_head"] = Head(backbone.embed_dim, objective.ibot_head)
    return side


def backbone_of(side: nn.ModuleDict) -> VisionTransformer:
    backbone = side["backbone"]
    assert isinstance(backbone, VisionTransformer)
    return backbone


def average(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """``slow = momentum * slow + (1 - momentum) * fast``, in place, all weights in one call; `fast` with its adapters
    merged, if it has any."""
    torch._foreach_lerp_(
        [local(p) for p in slow.parameters()], [local(p) for _, p in plain_parameters(fast)], 1 - momentum
    )
