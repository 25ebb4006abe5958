"""The whole of a pretraining run's settings; each part is defined beside the code it configures."""

from typing import Any, Literal

from pydantic import Field, model_validator

from dinomed.backbones.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from dinomed.backbones.vit import ViTConfig
from dinomed.config import Config
from dinomed.images.intensity import IntensityConfig
from dinomed.pretrain.data.crops import CropConfig
from dinomed.pretrain.data.masking import MaskConfig
from dinomed.pretrain.model.dinov2 import ObjectiveConfig, TeacherConfig
from dinomed.pretrain.model.lora import TuneConfig
from dinomed.pretrain.optim.optimizer import OptimizerConfig


class RunConfig(Config):
    """How long, how large, and what is written when."""

    steps: int = Field(125_000, ge=1)
    batch_size: int = Field(1024, ge=1, description="images; each gives 2 global and `crops.num_local` local views")
    micro_batch: int | None = Field(
        None, ge=1, description="images held in memory at once; the objective still sees the whole batch"
    )
    seed: int = Field(0, ge=0, lt=2**63)
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of matrix products; weights, losses and the optimiser stay float32"
    )
    scale_to_data: bool = Field(
        False,
        description="prototypes by the number of images, teacher momentum by the batch (dinomed.pretrain.optim.scaling_rules)",
    )
    workers: int = Field(2, ge=0, description="processes that read and crop images, for each training process")
    parallel: Literal["replicate", "shard"] = Field(
        "replicate", description="with several processes: each holds the model, or a part of it (FSDP2)"
    )
    compile: bool = Field(False, description="torch.compile each block; pays on CUDA only")
    checkpoint_activations: bool = Field(False, description="recompute blocks: a third more time, half the memory")
    timeout_s: float = Field(120, gt=0, description="until a process that hangs ends a run of several")
    log_every: int = Field(10, ge=1, description="steps")
    checkpoint_every: int = Field(500, ge=1, description="steps")
    keep_checkpoints: int = Field(2, ge=1)
    pca_images: int = Field(8, ge=0, description="held-aside images shown as PCA pictures at every checkpoint")
    knn_images: int = Field(1000, ge=0, description="labelled training images of the online k-NN; 0: none")
    patience: int | None = Field(
        None, ge=1, description="checkpoints in a row without a better online k-NN (AUROC on val), then the run stops"
    )
    assumed_watts: float = Field(65, ge=0, description="of one device, where its power cannot be measured")
    max_bad_steps: int = Field(5, ge=0, description="steps in a row whose loss is not finite, before the run stops")


class StartConfig(Config):
    """Nothing given: random weights."""

    weights: str | None = Field(None, description="a run or backbone folder, or the name of a released backbone")
    file: str | None = Field(None, description="a file with the weights of that name, if they are not to be fetched")
    warmup: float | None = Field(
        None, ge=0, le=1, description="fraction of the run in which only heads and mask token learn; 1: the whole run. "
        "If not given: 0.1 where the heads are new, 0 where they come along"
    )  # fmt: skip
    resize_positions: bool = Field(
        False, description="the position embedding to the grid of the global views, once; else at every forward"
    )


class PretrainConfig(Config):
    """`dinomed pretrain CONFIG` reads this from YAML."""

    backbone: ViTConfig = ViTConfig(drop_path=0.3)
    crops: CropConfig = CropConfig()
    masks: MaskConfig = MaskConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    teacher: TeacherConfig = TeacherConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()
    start: StartConfig = StartConfig()
    tune: TuneConfig = TuneConfig()
    images: IntensityConfig = IntensityConfig()
    mean: tuple[float, ...] = Field(IMAGENET_MEAN, description="of each channel, in [0, 1]")
    std: tuple[float, ...] = Field(IMAGENET_STD, description="of each channel, in [0, 1]")
    frozen_size: int | None = Field(
        None, ge=8, description="px to which images are resized for frozen use; the global views' size if not given"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        """The position embedding is made for the global views unless the config says otherwise; channels that are not
        RGB are normalised alike, by the average of ImageNet's."""
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
    def _fits(self) -> "PretrainConfig":
        patch = self.backbone.patch_size
        sizes = {"crops.global_size": self.crops.global_size, "frozen_size": self.image_size}
        if self.crops.num_local:
            sizes["crops.local_size"] = self.crops.local_size
        for name, size in sizes.items():
            if size % patch:
                near = size // patch * patch
                raise ValueError(f"{name} {size} is not divisible by the patch size {patch}; try {near or patch}")
        channels = self.backbone.in_channels
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(f"mean and std need {channels} values, one a channel (backbone.in_channels)")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std}: every value must be positive")
        patches = (self.crops.global_size // patch) ** 2
        low = int(patches * self.masks.ratio[0])
        if self.objective.ibot_weight and patches * self.masks.ratio[1] < 1:
            raise ValueError(
                f"masks.ratio {self.masks.ratio} of {patches} patches masks none ({low}); raise it or ibot_weight: 0"
            )
        o = self.objective
        if not (o.dino_weight or o.ibot_weight or o.koleo_weight):
            raise ValueError("every weight of the objective is 0; nothing would be learned")
        return self

    @property
    def image_size(self) -> int:
        """Side in px that images are resized to when the backbone is used frozen."""
        return self.frozen_size or self.crops.global_size
