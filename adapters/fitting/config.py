"""Settings of a fit that all tasks share: head, image size, augmentation, backbone tuning and optimiser."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from dinomed.adapters.catalogue import BUILT_IN, HeadConfig
from dinomed.adapters.fitting.augment import AugmentConfig, resolve_augmentation
from dinomed.backbones.config import LoraConfig
from dinomed.backbones.preprocessing import Aspect
from dinomed.config import Config, build_config
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError, did_you_mean
from dinomed.loggers.names import LoggerNames

if TYPE_CHECKING:
    from dinomed.adapters.adapter import Adapter
    from dinomed.backbones.frozen import FrozenBackbone


FEW_VAL_GROUPS = 20
"""Fewer groups (patients, lesions) in val than this do not rank epochs; see `FitConfig`."""


MOST_REFITTED = 1000
"""More images in train and val than this are not trained on again; see `FitConfig.refit`."""


class FitConfig(Config):
    """Optimiser settings.

    `keep` says which weights the head has at the end: those of the epoch with the `best` validation score, or those of
    the `last` epoch, without early stopping. `auto` keeps the last epoch if images are augmented and val has fewer than
    `FEW_VAL_GROUPS` groups (the differences between epochs are then mostly chance), otherwise the best.

    `refit` trains a segmenter a second time, from the same initial weights, on the images of train and val. Metrics,
    thresholds and the table of abstention stay those of the first head, which did not see val. `auto` does it where val
    chooses no epoch, `seconds` is not set, and train and val have at most `MOST_REFITTED` images together. Members of a
    cross-validation are never trained again.

    `adamw` uses shuffled batches and a cosine learning rate. With `seconds` it ends when the process has computed that
    long, and an epoch ends after its share of the time; `min_steps` is ignored, the computation of features before the
    training is not counted, and the result depends on the machine. `lbfgs` uses all examples at once, ten iterations an
    epoch, and ignores `min_steps`, `seconds`, `batch_size`, `learning_rate`, `warmup` and `average`; its `weight_decay`
    is an L2 penalty.
    """

    optimizer: Literal["adamw", "lbfgs"] = Field(
        "adamw", description="adamw: shuffled batches; lbfgs: all examples at once, for convex heads"
    )
    epochs: int = Field(
        100,
        ge=1,
        description="largest number of epochs; with adamw an epoch is one pass over the training images, or several "
        "(see `min_steps`), with lbfgs ten iterations; with `seconds` the largest number of validations",
    )
    min_steps: int = Field(
        500,
        ge=0,
        description="smallest number of steps of all epochs (adamw); an epoch has several passes to reach it; ignored "
        "with `seconds`",
    )
    seconds: float | None = Field(
        None,
        gt=0,
        description="processor seconds of the training (adamw), without the computation of features before it; the "
        "learning rate falls to 0 over them",
    )
    patience: int = Field(10, ge=1, description="stop after this number of epochs without a better validation score")
    keep: Literal["auto", "best", "last"] = Field("auto", description="epoch whose weights the head has at the end")
    refit: Literal["auto", "never", "always"] = Field(
        "auto",
        description="train a segmenter again on train and val together, after it was measured on val; auto: where the "
        "last epoch is kept since val has few groups, with at most 1,000 images and without `seconds`",
    )
    batch_size: int = Field(256, ge=2, description="training images per step (adamw)")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate (adamw); it falls to 0 along a cosine")
    warmup: float = Field(
        0.0, ge=0, lt=1, description="share of the training in which the learning rate rises from 0 (adamw)"
    )
    weight_decay: float = Field(0.01, ge=0, description="weight decay (adamw), or L2 penalty (lbfgs)")
    average: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of the moving average of the weights, which the head has at the end (adamw); 0: none",
    )
    precision: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "float32",
        description="of the products of the training; auto: bfloat16 where the device computes it faster (CUDA, "
        "processors with AMX), else float32; weights, losses and validation are always float32",
    )
    loggers: LoggerNames = Field(
        ("jsonl",),
        description="formats of the log: jsonl (always), tensorboard, mlflow and wandb; all are files in the folder of "
        "the head; heads without epochs have no log",
    )


LIVE_FIT: dict[str, Any] = {
    "optimizer": "adamw", "epochs": 20, "min_steps": 0, "patience": 5, "batch_size": 16, "learning_rate": 1e-3,
    "weight_decay": 0.01,
}  # fmt: skip
"""Defaults of `FitConfig` if images pass through the backbone in every epoch."""
DENSE_FIT: dict[str, Any] = {"epochs": 20, "patience": 6, "batch_size": 8, "learning_rate": 1e-3, "min_steps": 400}
"""Defaults of `FitConfig` for dense heads, which are trained on augmented images."""


RATE_LAST, RATE_LORA = 5e-5, 5e-4
_TUNE_FORMS = "none, last:N (the last N blocks), lora or lora:RANK"


class BackboneTuneConfig(Config):
    """Part of the backbone that is trained with the head: none, the `last` blocks, or `lora` adapters.

    It can be written as one word: ``last:2``, ``lora:8``. See `dinomed.adapters.fitting.tune`.
    """

    last: int | None = Field(None, ge=1, description="blocks, counted from the last block that the head uses")
    lora: LoraConfig | None = Field(None, description="train low-rank adapters of the backbone; null: none")
    learning_rate: float | None = Field(None, gt=0, description=f"null: {RATE_LAST:g} (last) or {RATE_LORA:g} (lora)")
    layer_decay: float = Field(
        0.75, gt=0, le=1, description="factor on the learning rate from a block to the one before"
    )

    @model_validator(mode="before")
    @classmethod
    def _parse_word(cls, data: Any) -> Any:
        if data is None or data == "none":
            return {}
        if not isinstance(data, str):
            return data
        kind, colon, number = data.partition(":")
        if kind == "last" and number.isdecimal() and int(number):
            return {"last": int(number)}
        if kind == "lora" and (not colon or (number.isdecimal() and int(number))):
            rank = int(number or 8)
            return {"lora": {"rank": rank, "alpha": 2 * rank}}
        raise ValueError(f"{data!r} is none of: {_TUNE_FORMS}")

    @model_validator(mode="after")
    def _check_choice(self) -> "BackboneTuneConfig":
        if self.last is not None and self.lora is not None:
            raise ValueError("last and lora are both set; choose one of them")
        return self

    @property
    def active(self) -> bool:
        """Whether any part of the backbone is trained."""
        return self.last is not None or self.lora is not None

    @property
    def word(self) -> str:
        """The setting as it is written in a command."""
        if self.lora is not None:
            return f"lora:{self.lora.rank}"
        return "none" if self.last is None else f"last:{self.last}"


class TrainConfig(Config):
    """Settings that all tasks share. `image_size` (px) is the side of the square to which images are resized.

    `augment` (none, auto, general, light, dermoscopy, endoscopy, xray, ultrasound, fundus, or a mapping) augments
    training images. `augment_copies` augmented copies of each image are made, and their features are computed once; 0
    computes the features of new copies in every epoch; null chooses by the cost (`count_copies` in
    `dinomed.adapters.fitting.feature_sources.choose`). `tune` (none, last:N, lora, lora:RANK, or a mapping) trains a
    part of the backbone; images then pass through the backbone in every epoch.
    """

    task: ClassVar[str]
    fit_is_augmented: ClassVar[bool] = False
    """Whether the defaults of `fit` are those of a fit with augmentation."""
    default_fit: ClassVar[dict[str, Any]] = {}
    """Settings of `fit` that the task replaces where neither the user nor the head gives any."""
    head: SerializeAsAny[HeadConfig] = Field(
        HeadConfig(), validate_default=True, description="the head, by its name, and its settings"
    )
    image_size: int | None = Field(
        None,
        ge=8,
        description="side of the square to which images are resized, px; null: chosen by the task and the backbone",
    )
    aspect: Aspect | None = Field(
        None,
        description="square: resize images to the square; pad: keep their proportions and pad; keep: resize to "
        "rectangles; null: as the backbone",
    )
    seed: int = Field(0, ge=0, description="seed of the initial weights, the order of images and their augmentation")
    augment: AugmentConfig = Field(
        AugmentConfig(), description="augmentation of training images: the name of a preset, or a table of values"
    )
    augment_copies: int | None = Field(
        None, ge=0, le=1000, description="copies of each training image; 0: new ones in every epoch; null: by the cost"
    )
    tune: BackboneTuneConfig = Field(
        BackboneTuneConfig(),
        description="part of the backbone that is trained: none, last:N, lora, lora:RANK, or a table",
    )
    fit: FitConfig = Field(FitConfig(), description="optimiser, length and stopping of the training")

    @model_validator(mode="before")
    @classmethod
    def _fill_fit(cls, data: Any) -> Any:
        """Fill missing settings of `fit`: with those of the head, else with those of the task."""
        if not isinstance(data, dict) or not isinstance(data.get("fit", {}), dict):
            return data
        head = data.get("head")
        name = head.get("name", "linear") if isinstance(head, dict) else getattr(head, "name", "linear")
        try:
            head_class = adapter_class(cls.task, str(name))
            if head_class.chooses:
                return data  # each candidate fills its own
            head_fit = head_class.fit_defaults
            augment, tune = (
                kind.model_validate(data.get(name, {}))
                for kind, name in ((AugmentConfig, "augment"), (BackboneTuneConfig, "tune"))
            )
        except (UsageError, ValidationError):
            return data  # the validation of the field reports it
        augmented = augment.active and not cls.fit_is_augmented
        live = LIVE_FIT if augmented or tune.active or cls._uses_windows(data) else {}
        fit = {**cls.default_fit, **head_fit, **live}
        if head_class.least_steps:
            fit["min_steps"] = max(fit.get("min_steps", 0), head_class.least_steps)
        return {**data, "fit": {**fit, **data.get("fit", {})}}

    @classmethod
    def _uses_windows(cls, data: dict[str, Any]) -> bool:
        """Return whether the settings ask for random windows of training images."""
        return False

    @model_validator(mode="after")
    def _check_optimizer(self) -> "TrainConfig":
        if self.fit.optimizer == "lbfgs" and self.live:
            raise ValueError("fit.optimizer: lbfgs uses all images at once; set adamw with augment, tune or crop")
        if self.fit.optimizer == "lbfgs" and self.fit.precision in ("bfloat16", "float16"):
            raise ValueError(f"fit.precision: {self.fit.precision} is not exact enough for lbfgs; set adamw or float32")
        return self

    def augmentation(self, manifest: Manifest, backbone: "FrozenBackbone") -> AugmentConfig:
        """Return the augmentation of these training images that is valid for the targets of the task."""
        return resolve_augmentation(self.augment, manifest, backbone)

    @property
    def live(self) -> bool:
        """Whether images pass through the backbone in every epoch."""
        return self.augment.active or self.tune.active

    @field_validator("head", mode="before")
    @classmethod
    def _head(cls, value: Any) -> Any:
        """Parse the settings of the head that ``head.name`` names; without any, the defaults of the linear head."""
        if type(value) is HeadConfig:
            value = value.model_dump(exclude_unset=True)
        if not isinstance(value, dict):
            return value
        try:
            return build_config(adapter_class(cls.task, str(value.get("name", "linear"))).Config, value, "head")
        except UsageError as error:  # pydantic passes a ValueError to `build_config`, which names the file
            raise ValueError(str(error).removeprefix("head: ")) from None


def adapter_class(task: str, name: str) -> "type[Adapter]":
    """Return the adapter class "TASK.NAME", built in (its module is imported here) or from a plug-in.

    Raises:
        UsageError: no such head, or it is for another task; the message names the nearest name.
    """
    from dinomed.adapters.adapter import ADAPTERS  # here: it imports torch

    for entry in BUILT_IN:  # all heads of this task, so that a misspelt name finds the nearest
        if entry.task == task:
            import_module(f"dinomed.adapters.heads.{entry.module}")
    full = f"{task}.{name}"
    if full not in ADAPTERS:  # names are compared without the task, which they share
        names = [known.removeprefix(f"{task}.") for known in ADAPTERS if known.startswith(f"{task}.")]
        raise UsageError(f"{task} has no head {name!r}{did_you_mean(name, names)} (dinomed models lists them)")
    head = ADAPTERS[full]
    if head.task != task:
        raise UsageError(f"head {name!r} is for {head.task}, not for {task}")
    return head
