"""Settings of a training run that all tasks share: which head, at which size, and how it is fitted."""

from importlib import import_module
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, field_validator

from dinomed.adapters.catalogue import BUILT_IN
from dinomed.adapters.contract import ADAPTERS, Adapter, HeadConfig, Task
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
    """What all tasks share. `image_size` (px) is the side of the square that the backbone sees."""

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


def adapter_class(task: Task, name: str) -> type[Adapter]:
    """The adapter called "TASK.NAME": one that comes with dinomed (its module is imported only now), or a plug-in.

    Raises:
        UsageError: there is none, or it is for another task; the nearest name is given.
    """
    for entry in BUILT_IN:  # of this task all, so that a misspelt name finds its nearest; of others none
        if entry.task == task:
            import_module(f"dinomed.adapters.{entry.module}")
    found = ADAPTERS[f"{task}.{name}"]
    if found.task != task:
        raise UsageError(f"adapter {name!r} is for {found.task}, not for {task}")
    return found
