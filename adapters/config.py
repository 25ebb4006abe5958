"""Settings of a training run of an adapter: what is fitted, on what, and how."""

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, field_validator

from dinomed.adapters.contract import ADAPTERS, Adapter, HeadConfig, Task
from dinomed.adapters.linear import LinearClassifierConfig  # its module registers the heads that come with dinomed
from dinomed.config import Config, build_config
from dinomed.errors import UsageError


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


class TrainConfig(Config):
    """What classifiers and segmenters share. `image_size` (px) is the side of the square that the backbone sees."""

    task: ClassVar[Task]
    head: SerializeAsAny[HeadConfig]
    image_size: int | None = Field(None, ge=8)
    seed: int = Field(0, ge=0)
    fit: FitConfig

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


class ClassifyConfig(TrainConfig):
    """`image_size` null: the backbone's own. `label` is the manifest's column of classes.

    A linear classifier is a convex problem and often an ill-conditioned one: on dermoscopy with an untrained backbone
    L-BFGS reached a balanced accuracy of 0.41 on test where AdamW ended at 0.34, in the same time.
    """

    task = "classify"
    head: SerializeAsAny[HeadConfig] = LinearClassifierConfig()
    label: str = "label"
    class_weights: Literal["balanced", "none"] = Field("balanced", description="balanced: each class weighs the same")
    fit: FitConfig = FitConfig(optimizer="lbfgs", weight_decay=1e-5, epochs=100, patience=10, batch_size=256)


class SegmentConfig(TrainConfig):
    """`image_size` null: the smallest that gives 24 patches a side, and not less than the backbone's own. Patches are
    the finest detail that a linear head can draw."""

    task = "segment"
    head: SerializeAsAny[HeadConfig] = HeadConfig()
    fit: FitConfig = FitConfig(epochs=15, patience=3, batch_size=32, learning_rate=1e-3)


def adapter_class(task: Task, name: str) -> type[Adapter]:
    """The adapter registered as "TASK.NAME". An unknown one is a `UsageError` naming the nearest."""
    found = ADAPTERS[f"{task}.{name}"]
    if found.task != task:
        raise UsageError(f"adapter {name!r} is for {found.task}, not for {task}")
    return found
