"""Settings of a training run that all tasks share: which head, at which size, and how it is fitted."""

from importlib import import_module
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from dinomed.adapters.adapter import ADAPTERS, Adapter, HeadConfig
from dinomed.adapters.catalogue import BUILT_IN
from dinomed.adapters.fitting.augment import AugmentConfig
from dinomed.adapters.fitting.config_tune import TuneConfig
from dinomed.config import Config, build_config
from dinomed.errors import UsageError, did_you_mean


class FitConfig(Config):
    """How a head is fitted; the epoch that is best on validation is kept.

    `adamw` goes through shuffled batches with a cosine learning rate. `lbfgs` takes all examples at once, ten
    iterations an epoch, and ignores `min_steps`, `batch_size` and `learning_rate`; its `weight_decay` is an L2 penalty.
    """

    optimizer: Literal["adamw", "lbfgs"] = "adamw"
    epochs: int = Field(100, ge=1)
    min_steps: int = Field(500, ge=0, description="a small collection is passed over several times an epoch")
    patience: int = Field(10, ge=1, description="epochs without a better validation score, then stop")
    batch_size: int = Field(256, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of matrix products, on CUDA; weights, losses and validation stay float32"
    )


LIVE_FIT: dict[str, Any] = {
    "optimizer": "adamw", "epochs": 20, "min_steps": 0, "patience": 5, "batch_size": 16, "learning_rate": 1e-3,
    "weight_decay": 0.01,
}  # fmt: skip
"""The fit, where it is not given, if images go through the backbone in every epoch."""


class TrainConfig(Config):
    """What all tasks share. `image_size` (px) is the side of the square that the backbone sees.

    With `augment` (none, light, dermoscopy, endoscopy, xray, ultrasound, fundus, or a mapping) training images are
    changed at random, and with `tune` (none, last:N, lora, lora:RANK, or a mapping) the backbone learns too. With
    either, images go through the backbone in every epoch; otherwise their features are computed once.
    """

    task: ClassVar[str]
    head: SerializeAsAny[HeadConfig]
    image_size: int | None = Field(None, ge=8)
    seed: int = Field(0, ge=0)
    augment: AugmentConfig = AugmentConfig()
    tune: TuneConfig = TuneConfig()
    fit: FitConfig

    @model_validator(mode="before")
    @classmethod
    def _fit_of_live(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("fit", {}), dict):
            return data
        try:
            augment, tune = (
                kind.model_validate(data.get(name, {}))
                for kind, name in ((AugmentConfig, "augment"), (TuneConfig, "tune"))
            )
        except ValidationError:
            return data  # the field's own validation tells
        live = augment.active or tune.active or cls._cuts(data)
        return {**data, "fit": {**LIVE_FIT, **data.get("fit", {})}} if live else data

    @classmethod
    def _cuts(cls, data: dict[str, Any]) -> bool:
        """Whether settings ask for random windows of training images."""
        return False

    @model_validator(mode="after")
    def _batches(self) -> "TrainConfig":
        if self.fit.optimizer == "lbfgs" and self.live:
            raise ValueError("fit.optimizer: lbfgs takes all images at once; with augment, tune, crop set adamw")
        if self.fit.optimizer == "lbfgs" and self.fit.precision != "float32":
            raise ValueError(f"fit.precision: {self.fit.precision} is too coarse for lbfgs; take adamw or float32")
        return self

    @property
    def live(self) -> bool:
        """Whether images go through the backbone in every epoch."""
        return self.augment.active or self.tune.active

    @field_validator("head", mode="before")
    @classmethod
    def _head(cls, value: Any) -> Any:
        """The settings of the adapter that ``head.name`` names."""
        if not isinstance(value, dict):
            return value
        try:
            return build_config(adapter_class(cls.task, str(value.get("name", "linear"))).Config, value, "head")
        except UsageError as error:  # pydantic passes a ValueError on to `build_config`, which knows the file
            raise ValueError(str(error).removeprefix("head: ")) from None


def adapter_class(task: str, name: str) -> type[Adapter]:
    """The adapter called "TASK.NAME": one that comes with dinomed (its module is imported only now), or a plug-in.

    Raises:
        UsageError: there is none, or it is for another task; the nearest name is given.
    """
    for entry in BUILT_IN:  # of this task all, so that a misspelt name finds its nearest; of others none
        if entry.task == task:
            import_module(f"dinomed.adapters.heads.{entry.module}")
    full = f"{task}.{name}"
    if full not in ADAPTERS:  # compared without the task, which would make any two names alike
        names = [known.removeprefix(f"{task}.") for known in ADAPTERS if known.startswith(f"{task}.")]
        raise UsageError(f"{task} has no head {name!r}{did_you_mean(name, names)} (dinomed models lists them)")
    found = ADAPTERS[full]
    if found.task != task:
        raise UsageError(f"adapter {name!r} is for {found.task}, not for {task}")
    return found
