"""The base class of adapters: heads on frozen features, each with a specification of the features that it reads.

To add a head, write one file: a subclass of `Adapter` with a config beside it, registered as "TASK.NAME"::

    class PoolConfig(HeadConfig):
        hidden: int = 64

    @ADAPTERS.register("classify.pool")
    class PoolClassifier(Adapter):
        task, Config = "classify", PoolConfig
        ...

and use it with ``dinomed train classify --head pool``. A plug-in names its class in an entry point of the group
``dinomed.adapters`` instead.
"""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from dinomed.adapters.catalogue import HeadConfig
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.features.compute import Features
from dinomed.registry import Registry


@dataclass(frozen=True)
class FeatureSpec:
    """The features that an adapter reads from the backbone.

    Attributes:
        blocks: blocks of the backbone; 0 is the first, -1 the last.
        patches: whether patch tokens are needed, which take about a hundred times the space. Class tokens and mean
            patch tokens are always computed.
        images: whether the head also reads the preprocessed images.
    """

    blocks: tuple[int, ...]
    patches: bool
    images: bool = False


def split_blocks(features: Features, count: int) -> list[Features]:
    """Split features of `count` blocks, concatenated along the channels, into the features of each block (views).

    >>> both = Features(cls=torch.zeros(2, 6), mean=torch.zeros(2, 6), patches=torch.zeros(2, 6, 4, 5))
    >>> [tuple(part.patches.shape) for part in split_blocks(both, 2)]
    [(2, 3, 4, 5), (2, 3, 4, 5)]
    """
    grids = [None] * count if features.patches is None else features.patches.chunk(count, dim=1)
    assert features.cls.shape[1] % count == 0, (tuple(features.cls.shape), count)
    parts = zip(features.cls.chunk(count, dim=1), features.mean.chunk(count, dim=1), grids, strict=True)
    return [Features(cls, mean, patches, features.images) for cls, mean, patches in parts]


class Adapter(nn.Module):
    """A head: maps features (`dinomed.features.compute.Features`) to logits.

    `task` decides how it is fitted and what the logits are:
    - classify: (B, classes), a softmax gives probabilities;
    - segment: (B, classes, rows, columns) on any grid, resized bilinearly to the image. A sigmoid gives probabilities
      where each class has its own mask (one class, or several that may overlap), a softmax where every pixel has
      exactly one class. In training a head may return several maps of each image, (parts * B, ...), one part after the
      other; each has the loss;
    - depth: (B, 1, rows, columns) on any grid, resized bilinearly to the image: depths, in the unit of the data.

    Args:
        config: an instance of `Config`, as `resolve_config` returns it.
        embed_dim: channels of the backbone; features have ``len(config.blocks)`` times as many.
        num_classes: classes of a classifier or a segmenter; 1 for depth.
    """

    task: ClassVar[str]
    """Name of the task, see `dinomed.adapters.task`."""
    Config: ClassVar[type[HeadConfig]] = HeadConfig
    grid: ClassVar[int] = 24
    """Default number of patches along a side in dense tasks, if the backbone's image size gives fewer."""
    flips: ClassVar[bool] = False
    scales: ClassVar[tuple[float, ...]] = (1.0,)
    """Mirror images and image sizes over which a dense prediction is averaged by default."""
    uses_patches: ClassVar[bool] = False
    """Whether `forward` reads the patch tokens: always in dense tasks, in classification only where a head pools them
    itself."""
    one_pass: ClassVar[bool] = True
    """Whether `forward` on one pass of the image, resized to the square, gives the prediction if no flips and scales
    are set."""
    uses_images: bool = False
    """Whether `forward` reads the preprocessed images as well; a head may set it by its config."""
    chooses: ClassVar[bool] = False
    """Whether this is only the name of a choice among other heads (`dinomed.adapters.heads.auto`)."""
    calibrates_patches: ClassVar[bool] = False
    """Whether `calibrate_patches` reads patch tokens of training images before each fit; needs `uses_patches`."""
    fit_defaults: ClassVar[dict[str, Any]] = {}
    """Settings of `fit` that this head replaces where the user gives none."""
    least_steps: ClassVar[int] = 0
    """Default of `fit.min_steps`, also where images pass through the backbone in every epoch; 0 for the usual one."""

    def __init__(self, config: Any, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.embed_dim, self.num_classes = config, embed_dim, num_classes

    @classmethod
    def resolve_config(cls, config: Any, backbone: FrozenBackbone) -> Any:
        """Return the config with the settings that depend on the backbone, such as blocks at a third of its depth.

        The bundle stores this config.
        """
        return config

    @property
    def feature_spec(self) -> FeatureSpec:
        """The features that `forward` reads."""
        return FeatureSpec(tuple(self.config.blocks), patches=self.uses_patches, images=self.uses_images)

    def calibrate(self, cls: np.ndarray, mean: np.ndarray) -> None:
        """Adapt to the pooled features of all training images before the fit.

        Args:
            cls: class tokens, float32 (N, blocks * C).
            mean: mean patch tokens, float32 (N, blocks * C).
        """

    def calibrate_patches(self, grids: Iterable[np.ndarray]) -> None:
        """Adapt to the patch tokens of some training images before the fit; called if `calibrates_patches` is set.

        Args:
            grids: patch tokens of each image, without augmentation, float32 (blocks * C, rows, columns).
        """

    def probe_logits(self, features: Features) -> Tensor:
        """Return the logits of each part of a head that predicts by itself, (parts, B, classes, rows, columns); by
        default of the head as a whole."""
        return self(features)[None]

    def fuse(self, maps: np.ndarray, exclusive: bool) -> np.ndarray:
        """Fuse the maps of all views of an image; by default their mean.

        Args:
            maps: float32 (views, classes, H, W): probabilities or depths of all parts of the head, for all sizes and
                mirror images.
            exclusive: whether every pixel has exactly one class.

        Returns:
            float32 (classes, H, W).
        """
        return maps.mean(axis=0, dtype=np.float32)

    @abstractmethod
    def forward(self, features: Features) -> Tensor:
        """Return the logits of a batch."""


ADAPTERS: Registry[type[Adapter]] = Registry("adapter", "dinomed.adapters")
