"""What an adapter is: a head on frozen features that says which features it needs.

To add one, write one file: a subclass of `Adapter` with a config beside it, registered as "TASK.NAME"::

    class PoolConfig(HeadConfig):
        hidden: int = 64

    @ADAPTERS.register("classify.pool")
    class PoolClassifier(Adapter):
        task, Config = "classify", PoolConfig
        ...

and use it with ``dinomed train classify --set head.name=pool``. A third party names its class in an entry point of the
group ``dinomed.adapters`` instead.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from dinomed.config import Config
from dinomed.features.compute import Features
from dinomed.registry import Registry

Task = Literal["classify", "segment"]


class HeadConfig(Config):
    """Settings of a head; each adapter adds its own."""

    name: str = "linear"
    blocks: tuple[int, ...] = Field((-1,), min_length=1, description="0 is the first, -1 the last")


@dataclass(frozen=True)
class Needs:
    """What an adapter asks of the backbone: tokens of which blocks, and whether patch by patch."""

    blocks: tuple[int, ...]
    patches: bool


class Adapter(nn.Module):
    """A head: features (`dinomed.features.compute.Features`) to logits.

    `task` decides how it is fitted and what logits are:
    - classify: (B, classes), a softmax gives probabilities;
    - segment: (B, 1, rows, columns) on any grid, resized bilinearly to the image; a sigmoid gives probabilities.

    Args:
        config: an instance of `Config`.
        embed_dim: channels of the backbone; features hold ``len(config.blocks)`` times as many.
        num_classes: classes of a classifier; 1 for a segmenter.
    """

    task: ClassVar[Task]
    Config: ClassVar[type[HeadConfig]] = HeadConfig

    def __init__(self, config: Any, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.embed_dim, self.num_classes = config, embed_dim, num_classes

    @property
    def needs(self) -> Needs:
        return Needs(tuple(self.config.blocks), patches=self.task == "segment")

    def calibrate(self, cls: np.ndarray, mean: np.ndarray) -> None:
        """Look at the pooled features of all training images, float32 (N, blocks * C), once before the fit."""

    @abstractmethod
    def forward(self, features: Features) -> Tensor: ...


ADAPTERS: Registry[type[Adapter]] = Registry("adapter", "dinomed.adapters")
