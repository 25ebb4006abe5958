"""What an adapter is: a head on frozen features that says which features it needs.

To add one, write one file: a subclass of `Adapter` with a config beside it, registered as "TASK.NAME"::

    class PoolConfig(HeadConfig):
        hidden: int = 64

    @ADAPTERS.register("classify.pool")
    class PoolClassifier(Adapter):
        task, Config = "classify", PoolConfig
        ...

and use it with ``dinomed train classify --head pool``. A third party names its class in an entry point of the
group ``dinomed.adapters`` instead.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from dinomed.backbones.frozen import FrozenBackbone
from dinomed.config import Config
from dinomed.features.compute import Features
from dinomed.registry import Registry


class HeadConfig(Config):
    """Settings of a head; each adapter adds its own."""

    name: str = "linear"
    blocks: tuple[int, ...] = Field((-1,), min_length=1, description="0 is the first, -1 the last")


@dataclass(frozen=True)
class FeatureSpec:
    """What an adapter asks of the backbone. Class tokens and mean patch tokens always come; `patches` asks for the
    patch tokens themselves, which are a hundred times as many."""

    blocks: tuple[int, ...]
    patches: bool


def split_blocks(features: Features, count: int) -> list[Features]:
    """Features of `count` blocks, concatenated along the channels, as one `Features` for each block, in order (views).

    >>> both = Features(cls=torch.zeros(2, 6), mean=torch.zeros(2, 6), patches=torch.zeros(2, 6, 4, 5))
    >>> [tuple(one.patches.shape) for one in split_blocks(both, 2)]
    [(2, 3, 4, 5), (2, 3, 4, 5)]
    """
    grids = [None] * count if features.patches is None else features.patches.chunk(count, dim=1)
    assert features.cls.shape[1] % count == 0, (tuple(features.cls.shape), count)
    parts = zip(features.cls.chunk(count, dim=1), features.mean.chunk(count, dim=1), grids, strict=True)
    return [Features(cls, mean, patches) for cls, mean, patches in parts]


class Adapter(nn.Module):
    """A head: features (`dinomed.features.compute.Features`) to logits.

    `task` decides how it is fitted and what logits are:
    - classify: (B, classes), a softmax gives probabilities;
    - segment: (B, classes, rows, columns) on any grid, resized bilinearly to the image; a sigmoid gives probabilities
      where each class has a mask of its own (one of one class, or several that may overlap), a softmax where every
      pixel has one class;
    - depth: (B, 1, rows, columns) on any grid, resized bilinearly to the image; these are depths, in the data's unit.

    Args:
        config: an instance of `Config`, settled.
        embed_dim: channels of the backbone; features hold ``len(config.blocks)`` times as many.
        num_classes: classes of a classifier or a segmenter; 1 for depth.
    """

    task: ClassVar[str]
    """Name of the task, see `dinomed.adapters.task`."""
    Config: ClassVar[type[HeadConfig]] = HeadConfig
    grid: ClassVar[int] = 24
    """Patches a side that a dense task gets by default, if the backbone's own size gives fewer."""
    flips: ClassVar[bool] = False
    scales: ClassVar[tuple[float, ...]] = (1.0,)
    """Mirror images and other sizes that a prediction of a dense task is averaged over by default."""
    uses_patches: ClassVar[bool] = False
    """Whether `forward` reads the patch tokens: always in dense tasks, in classification only where a head pools them
    itself."""
    fit_defaults: ClassVar[dict[str, Any]] = {}
    """Settings of `fit` that this head replaces where the user gives none."""

    def __init__(self, config: Any, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.embed_dim, self.num_classes = config, embed_dim, num_classes

    @classmethod
    def resolve_config(cls, config: Any, backbone: FrozenBackbone) -> Any:
        """The config with what depends on the backbone filled in, such as blocks at a third of its depth; the bundle
        keeps it so."""
        return config

    @property
    def feature_spec(self) -> FeatureSpec:
        return FeatureSpec(tuple(self.config.blocks), patches=self.uses_patches)

    def calibrate(self, cls: np.ndarray, mean: np.ndarray) -> None:
        """Look at the pooled features of all training images, float32 (N, blocks * C), once before the fit."""

    @abstractmethod
    def forward(self, features: Features) -> Tensor: ...


ADAPTERS: Registry[type[Adapter]] = Registry("adapter", "dinomed.adapters")
