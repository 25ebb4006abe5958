"""The config of a pretraining run, assembled from the configs that stand beside the code they configure."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from dinomed.backbones.config import ViTConfig
from dinomed.backbones.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from dinomed.config import Config, build_config, load_config, merge, parse_overrides
from dinomed.errors import UsageError
from dinomed.images.intensity import IntensityConfig
from dinomed.log import logger
from dinomed.loggers.names import LoggerNames
from dinomed.pretrain.data.config import CropConfig
from dinomed.pretrain.data.masking import MaskConfig
from dinomed.pretrain.model.config import (
    DistillationConfig,
    InitialisationConfig,
    ObjectiveConfig,
    StudentTuneConfig,
    TeacherConfig,
)
from dinomed.pretrain.optim.config import OptimizerConfig

HIGH_RESOLUTION, LOW_RESOLUTION = 518, 224  # px of the two phases (Oquab et al. 2023, section 4)


class RunConfig(Config):
    """Length and size of a run, and when it writes its files."""

    steps: int = Field(125_000, ge=1, description="optimiser steps")
    batch_size: int = Field(
        1024,
        ge=1,
        description="images per step, over all processes; each gives 2 global and `crops.num_local` local views",
    )
    micro_batch: int | None = Field(
        None, ge=1, description="images in memory at once; the losses are still computed on the whole batch"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the weights, the order of images, crops and masks")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of matrix products; weights, losses and optimiser state stay float32"
    )
    scale_to_data: bool = Field(
        False,
        description="set the number of prototypes from the number of images and the teacher momentum from the batch "
        "size (dinomed.pretrain.optim.scaling_rules)",
    )
    workers: int = Field(2, ge=0, le=256, description="data-loading processes for each training process")
    parallel: Literal["replicate", "shard"] = Field(
        "replicate", description="with several processes: each holds the whole model, or a shard of it (FSDP2)"
    )
    compile: bool = Field(False, description="compile each block with torch.compile; faster on CUDA only")
    checkpoint_activations: bool = Field(
        False, description="recompute the blocks in the backward pass: a third more time, half the memory"
    )
    timeout_s: float = Field(120, gt=0, description="seconds until a hanging process ends a run of several processes")
    log_every: int = Field(10, ge=1, description="steps between two lines of the log")
    loggers: LoggerNames = Field(
        ("jsonl", "tensorboard"),
        description="formats of the log: jsonl (always), tensorboard, mlflow, wandb; all are files in the run folder",
    )
    checkpoint_every: int = Field(500, ge=1, description="steps between two checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="number of newest checkpoints that are kept")
    pca_images: int = Field(8, ge=0, description="held-aside images in the PCA picture of every checkpoint")
    knn_images: int = Field(1000, ge=0, description="labelled training images for online k-NN; 0 disables it")
    patience: int | None = Field(
        None, ge=1, description="stop after this many checkpoints in a row without a better online k-NN (AUROC on val)"
    )
    assumed_watts: float = Field(65, ge=0, description="power of one device, W, if it cannot be measured")
    max_bad_steps: int = Field(
        5, ge=0, description="allowed number of steps in a row with a loss that is not finite; one more ends the run"
    )


class PretrainConfig(Config):
    """The settings that `dinomed pretrain CONFIG` reads from YAML."""

    backbone: ViTConfig = Field(ViTConfig(drop_path=0.3), description="architecture of the ViT")
    crops: CropConfig = Field(CropConfig(), description="crops and their augmentation")
    masks: MaskConfig = Field(MaskConfig(), description="masks of patches")
    objective: ObjectiveConfig = Field(ObjectiveConfig(), description="losses and projection heads")
    teacher: TeacherConfig = Field(TeacherConfig(), description="EMA teacher")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="optimiser, learning rate and weight decay")
    run: RunConfig = Field(RunConfig(), description="length, batch, precision, devices and files of the run")
    start: InitialisationConfig = Field(InitialisationConfig(), description="initial weights")
    tune: StudentTuneConfig = Field(StudentTuneConfig(), description="part of the backbone that learns")
    distill: DistillationConfig = Field(
        DistillationConfig(), description="learning from a larger teacher (`dinomed distill`)"
    )
    images: IntensityConfig = Field(IntensityConfig(), description="bit depth and range of the samples of images")
    mean: tuple[float, ...] = Field(IMAGENET_MEAN, description="mean of each channel, in [0, 1]")
    std: tuple[float, ...] = Field(IMAGENET_STD, description="standard deviation of each channel, in [0, 1]")
    frozen_size: int | None = Field(
        None, ge=8, description="image side for the frozen backbone, px; `crops.global_size` if not given"
    )

    @model_validator(mode="before")
    @classmethod
    def _add_defaults(cls, data: Any) -> Any:
        """Give the position embedding the grid of the global views, unless the config sets it. With a number of
        channels other than 3, give each channel the average of the ImageNet mean and std."""
        if isinstance(data, dict) and isinstance(data.get("backbone", {}), dict):
            crops = data.get("crops")
            size = crops.get("global_size", 224) if isinstance(crops, dict) else 224
            backbone = {"drop_path": 0.3, "image_size": size, **data.get("backbone", {})}
            data = {**data, "backbone": backbone}
            channels = backbone.get("in_channels", 3)
            if isinstance(channels, int) and 0 < channels != 3:
                for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
                    data.setdefault(name, (round(sum(values) / 3, 3),) * channels)
        return data

    @model_validator(mode="after")
    def _check_consistency(self) -> "PretrainConfig":
        patch = self.backbone.patch_size
        sizes = {"crops.global_size": self.crops.global_size, "frozen_size": self.image_size}
        if self.crops.num_local:
            sizes["crops.local_size"] = self.crops.local_size
        early = self.crops.early
        if early is not None:
            sizes |= {"crops.early.global_size": early.global_size, "crops.early.local_size": early.local_size}
        for name, size in sizes.items():
            if size % patch:
                nearest = size // patch * patch or patch
                raise ValueError(f"{name} {size} is not divisible by the patch size {patch}; use {nearest}")
        channels = self.backbone.in_channels
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(f"mean and std need {channels} values, one for each channel (backbone.in_channels)")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} has a value that is not positive")
        try:
            _ = self.preprocessing
        except ValidationError:
            raise ValueError(
                f"mean {self.mean} and std {self.std} are not of values in 0 to 1; divide values of 0 to 255 by 255"
            ) from None
        smallest_size = min(self.crops.global_size, self.crops.early_crops().global_size)
        patches = (smallest_size // patch) ** 2
        objective = self.objective
        if objective.needs_masks and patches * self.masks.ratio[1] < 1:
            raise ValueError(
                f"masks.ratio {self.masks.ratio} masks none of {patches} patches; raise it, or set "
                "objective.ibot_weight and objective.pixel_weight to 0"
            )
        masks = self.masks
        if objective.predictor_depth and not (
            objective.needs_masks and masks.shape == "random" and masks.probability == 1 and len(set(masks.ratio)) == 1
        ):
            raise ValueError(
                "objective.predictor_depth needs the same number of masked patches in every global view, and a loss on "
                "them: set masks.shape=random, masks.probability=1, equal masks.ratio, such as [0.75,0.75], and "
                "objective.ibot_weight or objective.pixel_weight above 0"
            )
        if objective.predictor_depth and objective.gram_weight:
            raise ValueError(
                "objective.gram_weight needs all patches in the student's encoder; set objective.predictor_depth=0"
            )
        if objective.predictor_depth and self.backbone.position == "rope":
            raise ValueError(
                "objective.predictor_depth needs a learned position embedding, and backbone.position is rope; set "
                "objective.predictor_depth=0"
            )
        if self.optimizer.matrices == "muon" and self.run.precision == "float16":
            raise ValueError("optimizer.matrices=muon does not work with run.precision=float16; use bfloat16")
        if self.distill.method == "features":
            if not (self.distill.class_weight or self.distill.patch_weight):
                raise ValueError("distill.class_weight and distill.patch_weight are 0; set at least one above 0")
        elif not (objective.dino_weight or objective.needs_masks or objective.koleo_weight):
            raise ValueError("all weights of the objective are 0; set at least one above 0")
        return self

    @property
    def image_size(self) -> int:
        """Side in px to which images are resized for the frozen backbone."""
        return self.frozen_size or self.crops.global_size

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of images for the frozen backbone."""
        return Preprocessing(
            image_size=self.image_size,
            mean=self.mean,
            std=self.std,
            channels=self.backbone.in_channels,
            intensity=self.images,
        )


def load_pretrain_config(path: Path, overrides: Iterable[str] = (), phase: str | None = None) -> PretrainConfig:
    """Load a config from YAML, with ``a.b=value`` overrides and, for ``phase="highres"``, the high-resolution settings.

    Overrides replace the settings of the phase. If one of them is `crops.global_size`, the phase uses this size, else
    that of `to_high_resolution`.

    Raises:
        UsageError: a setting is wrong, the phase is unknown, or a high-resolution phase has no initial weights.
    """
    overrides = list(overrides)
    config = load_config(PretrainConfig, path, overrides)
    if phase is None:
        return config
    if phase != "highres":
        raise UsageError(f"`phase={phase!r}` is unknown; use highres")
    settings = parse_overrides(overrides)
    has_size = "global_size" in settings.get("crops", {})
    size = config.crops.global_size if has_size else None  # local crops follow it
    recipe = load_config(PretrainConfig, path)
    large = to_high_resolution(recipe, size).model_dump()
    config = build_config(PretrainConfig, merge(large, settings), "`phase=highres`")
    if config.start.weights is None:
        raise UsageError("`phase=highres` needs the weights of a run; add `start=RUN`")
    logger.info(
        f"`phase=highres`: global views of {config.crops.global_size} px and local views of {config.crops.local_size} "
        f"px, in place of {recipe.crops.global_size} and {recipe.crops.local_size} px; "
        "`settings=['crops.global_size=SIZE']` sets another size"
    )
    return config


def to_high_resolution(config: PretrainConfig, size: int | None = None) -> PretrainConfig:
    """Return the settings of the short high-resolution phase at the end of pretraining (Oquab et al. 2023, section 4).

    All crops grow by the same factor, the position embedding is resized once, and every schedule runs over the steps
    of this phase. The paper's 10,000 steps after 125,000 (or 625,000) become 8% of the config's steps. The paper does
    not give the learning rate, only says that it is lower; here it is a tenth.

    Args:
        size: side of the global crops, px; rounded to whole patches. None for the factor of the paper, 518 / 224, but
            not above 518 px.
    """
    patch, crops, run = config.backbone.patch_size, config.crops, config.run
    if size is None:
        grown = crops.global_size * HIGH_RESOLUTION / LOW_RESOLUTION
        size = max(min(round(grown), HIGH_RESOLUTION), crops.global_size)
    global_size = round(size / patch) * patch
    local_size = max(round(crops.local_size * global_size / crops.global_size / patch), 1) * patch
    changes = {
        "backbone": {"image_size": global_size},
        "crops": {"global_size": global_size, "local_size": local_size, "early": None},
        "frozen_size": global_size,
        "optimizer": {"lr": config.optimizer.lr / 10},
        "run": {"steps": max(run.steps * 8 // 100, 1)},
        "start": {"resize_positions": True},
    }
    return build_config(PretrainConfig, merge(config.model_dump(), changes), "`phase=highres`")
