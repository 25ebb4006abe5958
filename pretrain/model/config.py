"""Settings of the model, its losses, its initialisation and distillation. This module imports no torch."""

from typing import Literal

from pydantic import Field

from dinomed.backbones.config import LoraConfig
from dinomed.config import Config
from dinomed.pretrain.optim.schedules import Schedule


class ProjectionHeadConfig(Config):
    """Sizes of a projection head, and the variant of its last layer."""

    prototypes: int = Field(65536, ge=2, le=2**22, description="number of outputs")
    hidden: int = Field(2048, ge=1, le=65_536, description="width of the hidden layers")
    bottleneck: int = Field(256, ge=1, le=65_536, description="width before the prototypes")
    layers: int = Field(3, ge=1, le=32, description="linear layers up to the bottleneck")
    learned_norm: bool = Field(
        True, description="learn the norm of each prototype (the g of weight normalisation), as DINOv2 does; "
        "false: norms of 1, as in DINO v1"
    )  # fmt: skip
    prototype_init: Literal["linear", "truncated_normal"] = Field(
        "linear", description="initial prototypes: as a default nn.Linear, as in the reference code; or from a "
        "truncated normal with standard deviation 0.02"
    )  # fmt: skip


class ObjectiveConfig(Config):
    """Losses, their weights, and the heads that they are computed on."""

    dino_weight: float = Field(1.0, ge=0, description="weight of the DINO loss on class tokens; 0: no such loss")
    ibot_weight: float = Field(1.0, ge=0, description="weight of the iBOT loss on masked patch tokens; 0: no such loss")
    koleo_weight: float = Field(
        0.1, ge=0, description="weight of the KoLeo loss, which spreads class tokens evenly; 0: no such loss"
    )
    koleo_views: Literal["both", "first"] = Field(
        "both", description="global views with a KoLeo loss: both as in the released code, the first as in the paper"
    )
    targets: Literal["sinkhorn", "centering"] = Field("sinkhorn", description="how teacher logits become targets")
    center_momentum: float = Field(0.9, ge=0, lt=1, description="of the centre, for targets: centering")
    untied_heads: bool = Field(True, description="a separate head for iBOT; else both losses use the DINO head")
    dino_head: ProjectionHeadConfig = Field(ProjectionHeadConfig(), description="projection head of the DINO loss")
    ibot_head: ProjectionHeadConfig = Field(ProjectionHeadConfig(), description="projection head of the iBOT loss")
    student_temperature: float = Field(0.1, gt=0, description="temperature of the student's logits")
    pixel_weight: float = Field(
        0.0, ge=0, description="weight, at the start of the run, of a regression on the pixels of masked patches; "
        "0: no such loss"
    )  # fmt: skip
    pixel_target: Literal["pixels", "hog"] = Field(
        "pixels", description="normalised pixels of a patch, or its histograms of oriented gradients"
    )
    pixel_decay: float = Field(
        1.0, gt=0, le=1, description="fraction of the run in which the weight falls linearly to 0"
    )
    predictor_depth: int = Field(
        0, ge=0, le=64, description="0: masked patches are mask tokens in the encoder, as in iBOT; above 0: the "
        "student's encoder gets the visible patches of the global views only, and a predictor of this many blocks "
        "predicts the masked ones; needs masks.shape: random"
    )  # fmt: skip
    gram_weight: float = Field(
        0.0, ge=0, description="weight of Gram anchoring (2 in DINOv3), which keeps similarities between patches "
        "close to those of an earlier teacher; 0: no such loss"
    )  # fmt: skip
    gram_start: float = Field(0.5, ge=0, lt=1, description="fraction of the run after which Gram anchoring acts")
    gram_refresh: float = Field(
        0.1, ge=0, le=1, description="fraction of the run between two steps at which the present teacher becomes the "
        "anchor; 0: only at gram_start"
    )  # fmt: skip
    gram_scale: Literal[1, 2] = Field(
        1, description="2: the anchor of Gram anchoring sees the global views at twice their resolution, and its patch "
        "tokens are reduced to the student's grid, as in DINOv3; 1: it sees the same views"
    )  # fmt: skip
    queue: int = Field(
        0, ge=0, le=2**20, description="earlier images in Sinkhorn-Knopp of class tokens and in KoLeo, beside those of "
        "the batch; for small batches"
    )  # fmt: skip

    @property
    def needs_masks(self) -> bool:
        """Whether a loss is computed on masked patches."""
        return bool(self.ibot_weight or self.pixel_weight)

    def pixel_weight_at(self, step: int, total: int) -> float:
        """Return the weight of the regression at `step` of 0 .. total - 1."""
        return self.pixel_weight * max(1 - step / (self.pixel_decay * total), 0.0)

    def gram_first_step(self, total: int) -> int:
        """Return the step of 0 .. total - 1 from which on Gram anchoring acts."""
        return int(self.gram_start * total)

    def is_gram_refresh(self, step: int, total: int) -> bool:
        """Return whether the present teacher becomes the anchor at `step` of 0 .. total - 1."""
        since = step - self.gram_first_step(total)
        every = int(self.gram_refresh * total)
        return since == 0 or (since > 0 and every > 0 and since % every == 0)

    @property
    def head_names(self) -> tuple[str, ...]:
        """The heads that the losses need; without a head of its own, iBOT uses the DINO head."""
        names = ("dino_head",) if self.dino_weight else ()
        has_ibot_head = self.ibot_weight and (self.untied_heads or not self.dino_weight)
        return (*names, "ibot_head") if has_ibot_head else names


class TeacherConfig(Config):
    """Momentum and temperature of the EMA teacher, with their schedules."""

    momentum: float = Field(0.992, ge=0, le=1, description="EMA momentum at the start of the run")
    momentum_end: float = Field(1.0, ge=0, le=1, description="EMA momentum at the end of the run")
    temperature: float = Field(0.07, gt=0, description="temperature of the teacher's logits after the warm-up")
    temperature_start: float = Field(
        0.04, gt=0, description="temperature of the teacher's logits at the start of the run"
    )
    temperature_warmup: float = Field(0.3, ge=0, lt=1, description="fraction of the run; 37,500 of 125,000 iterations")

    def momentum_at(self, step: int, total: int) -> float:
        """Return the EMA momentum at `step` of 0 .. total - 1."""
        return Schedule(peak=self.momentum, end=self.momentum_end)(step, total)

    def temperature_at(self, step: int, total: int) -> float:
        """Return the teacher temperature at `step` of 0 .. total - 1."""
        end = self.temperature
        return Schedule(start=self.temperature_start, peak=end, end=end, warmup=self.temperature_warmup)(step, total)


class InitialisationConfig(Config):
    """Initial weights of a run; random if `weights` is not set."""

    weights: str | None = Field(None, description="a run folder, the folder, file or name of a backbone")
    file: str | None = Field(None, description="a file with the weights of that name, instead of a download")
    mean: tuple[float, ...] | None = Field(
        None, description="mean of each channel, 0 to 1, with which the weights were trained, for files that name none"
    )
    std: tuple[float, ...] | None = Field(None, description="standard deviation of each channel, likewise")
    warmup: float | None = Field(
        None, ge=0, le=1, description="fraction of the run in which only the mask token and the parts beside the "
        "backbone learn; 1: the whole run. Default: 0.1 if a head, predictor or projector is new, 0 if the weights "
        "hold all of them"
    )  # fmt: skip
    resize_positions: bool = Field(
        False,
        description="resize the position embedding once to the grid of the global views; else in every forward pass",
    )


class StudentTuneConfig(Config):
    """The part of the student's backbone that learns; by default all of it."""

    lora: LoraConfig | None = Field(None, description="low-rank adaptation of the initial weights")


class DistillationConfig(Config):
    """What a student learns from its teacher; for `dinomed distill`."""

    method: Literal["heads", "features"] = Field(
        "heads", description="heads: the DINO and iBOT losses on the heads of a run; features: tokens of any backbone"
    )
    file: str | None = Field(
        None, description="features: a file with the weights of the teacher that --teacher names, instead of a download"
    )
    mean: tuple[float, ...] | None = Field(
        None, description="features: mean of each channel, 0 to 1, of a teacher whose files name none"
    )
    std: tuple[float, ...] | None = Field(None, description="features: standard deviation of each channel, likewise")
    loss: Literal["mse", "cosine"] = Field(
        "mse", description="features: mean squared error, or 1 - cosine similarity, of projected and teacher's tokens"
    )
    class_weight: float = Field(1.0, ge=0, description="features: weight of the loss on class tokens")
    patch_weight: float = Field(1.0, ge=0, description="features: weight of the loss on patch tokens")
