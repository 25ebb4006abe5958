"""Interface of the feature sources of a fit."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.fitting.config import FitConfig
from dinomed.adapters.fitting.optimizers import BatchIndices, ParameterGroup
from dinomed.adapters.fitting.tune import TunedBackbone
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.features.compute import Features


@dataclass(frozen=True)
class TrainingBatch:
    """Features and targets of training images, on the device."""

    features: Features
    targets: Tensor


class FeatureSource(ABC):
    """Features of training and validation images.

    `cls` and `mean` are the class tokens and mean patch tokens of all training images without augmentation, float32
    (N, blocks * C). `backbone` is the backbone in its current state, which changes if it is tuned. Where a batch must
    have images of one grid of patches, `grids` and `val_grids` have the rows and columns of each image, (N, 2).
    """

    cls: np.ndarray
    mean: np.ndarray
    backbone: FrozenBackbone
    grids: np.ndarray | None = None
    val_grids: np.ndarray | None = None

    @abstractmethod
    def train(self, batches: Iterable[BatchIndices]) -> Iterator[TrainingBatch]:
        """Yield the features and targets of each batch."""

    @abstractmethod
    def val(self, rows: Sequence[int]) -> Features:
        """Return features of validation images, of the backbone in its current state."""

    def plain(self, rows: Sequence[int]) -> Features:
        """Return features of training images without augmentation; only of a source that computes features once."""
        raise NotImplementedError

    def model(self, adapter: Adapter) -> nn.Module:
        """Return the module to train: the head, with the backbone if it is tuned."""
        return adapter

    def groups(self, adapter: Adapter, config: FitConfig) -> list[ParameterGroup]:
        """Return the parameters to train with their learning rates."""
        learned = [p for p in adapter.parameters() if p.requires_grad]
        return [ParameterGroup(learned, config.learning_rate, config.warmup)]

    def tuned(self) -> TunedBackbone | None:
        """Return the tuned backbone; None if it is frozen."""
        return None
