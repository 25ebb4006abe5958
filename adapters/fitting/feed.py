"""Where a fit has its features from: computed once, or anew for every batch.

- Nothing is augmented and the backbone is frozen: train and val are computed once and kept (`CachedFeed`).
- Images are augmented: those of train go through the backbone in every epoch; val is computed once and kept.
- Training looks at random windows of images: those of train go through the backbone in every epoch.
- The backbone learns with the head: both go through it in every epoch (`LiveFeed`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.fitting.augment import Augment
from dinomed.adapters.fitting.build import extract_splits, gather
from dinomed.adapters.fitting.config import FitConfig, TrainConfig
from dinomed.adapters.fitting.data import Splits
from dinomed.adapters.fitting.loop import Draw, Group
from dinomed.adapters.fitting.pictures import Pictures, Take
from dinomed.adapters.fitting.tune import LearningBackbone, Tuned
from dinomed.adapters.fitting.windows import RandomWindows
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.errors import UsageError
from dinomed.features.cache import FeatureCache
from dinomed.features.compute import Features, compute_features
from dinomed.features.extract import extract, resolve_blocks
from dinomed.progress import bar

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
Gather = Callable[[Sequence[int]], Features]


@dataclass(frozen=True)
class TrainingBatch:
    """Features of training images and what is known of them, on the device."""

    features: Features
    targets: Tensor


class Feed(ABC):
    """`cls` and `mean` are the pooled features of all training images as they are, float32 (N, blocks * C)."""

    cls: np.ndarray
    mean: np.ndarray
    backbone: FrozenBackbone
    """As it is now: what it has learned so far."""

    @abstractmethod
    def train(self, draws: Iterable[Draw]) -> Iterator[TrainingBatch]:
        """A batch for each draw."""

    @abstractmethod
    def val(self, rows: Sequence[int]) -> Features:
        """Features of images of val, as the backbone gives them now."""

    def model(self, adapter: Adapter) -> nn.Module:
        """What is trained: the head, and the backbone if it learns."""
        return adapter

    def groups(self, adapter: Adapter, config: FitConfig) -> list[Group]:
        return [Group([p for p in adapter.parameters() if p.requires_grad], config.learning_rate)]

    def tuned(self) -> Tuned | None:
        """The backbone that has learned, if it did."""
        return None


class CachedFeed(Feed):
    """Features that are there. `gathers`: rows of train and of val to their features, on the device; `pooled`: `cls`
    and `mean` of train; `targets`: of rows of train."""

    def __init__(
        self,
        backbone: FrozenBackbone,
        gathers: tuple[Gather, Gather],
        pooled: tuple[np.ndarray, np.ndarray],
        targets: Take,
    ) -> None:
        self.backbone = backbone
        self._train, self._val = gathers
        self.cls, self.mean = pooled
        self.targets = targets

    def train(self, draws: Iterable[Draw]) -> Iterator[TrainingBatch]:
        for draw in draws:
            rows = draw.indices.tolist()
            features = self._train(rows)
            yield TrainingBatch(features, self.targets(rows).to(features.cls.device))

    def val(self, rows: Sequence[int]) -> Features:
        return self._val(rows)


class LiveFeed(Feed):
    """Images of train, augmented, or random windows of them, through the backbone in every epoch; and those of val, if
    it learns. With windows `val` is not for use: who validates predicts as the bundle will."""

    def __init__(
        self, backbone: FrozenBackbone, splits: Splits, adapter: Adapter, config: TrainConfig, cache: str | Path,
        targets: Take, windows: RandomWindows | None = None,
    ) -> None:  # fmt: skip
        self.feature_spec, self.precision = adapter.feature_spec, config.fit.precision
        blocks, seed = resolve_blocks(self.feature_spec.blocks, backbone.depth), config.seed
        self.learning = LearningBackbone(backbone, config.tune, blocks, seed) if config.tune.active else None
        self.backbone = self.learning or backbone
        settings = config.augment.of_depth() if config.task == "depth" else config.augment
        augment = Augment(settings, backbone.preprocessing.channels) if settings.active else None
        self.pictures = Pictures(splits.train, backbone.preprocessing, targets, augment, seed, windows)
        if windows is None:
            pooled = extract(backbone, splits.train, cache=cache, blocks=blocks, description="pooled features of train")
            self.cls, self.mean = pooled.cls, pooled.mean
        else:
            self.cls, self.mean = self._pooled(backbone, len(splits.train), config.fit.batch_size)
        self.kept: FeatureCache | None = None
        if self.learning is None and windows is None:
            self.kept = extract(
                backbone, splits.val, cache=cache, blocks=blocks, patches=self.feature_spec.patches,
                description="features of val",
            )  # fmt: skip
        nothing = lambda rows: torch.zeros(len(rows))
        self.plain = Pictures(splits.val, backbone.preprocessing, nothing, None, seed)

    def _pooled(self, backbone: FrozenBackbone, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Pooled features of the windows of the first pass."""
        cls, mean = [], []
        with bar("pooled features of train", count) as progress:
            for pixels, _ in self.pictures.batches(Draw(rows, 0) for rows in torch.arange(count).split(size)):
                found = compute_features(backbone, pixels, self.feature_spec.blocks, False)
                cls.append(found.cls.cpu().numpy())
                mean.append(found.mean.cpu().numpy())
                progress.advance(len(pixels))
        return np.concatenate(cls), np.concatenate(mean)

    def train(self, draws: Iterable[Draw]) -> Iterator[TrainingBatch]:
        for pixels, targets in self.pictures.batches(draws):
            with half_precision(self.precision, self.backbone.device):
                features = compute_features(self.backbone, pixels, self.feature_spec.blocks, self.feature_spec.patches)
            yield TrainingBatch(features, targets.to(self.backbone.device))

    def val(self, rows: Sequence[int]) -> Features:
        if self.kept is not None:
            return gather(self.kept, rows, self.backbone.device)
        assert self.learning is not None
        pixels, _ = self.plain.load(Draw(torch.tensor(list(rows)), 0))
        with torch.no_grad():
            return compute_features(self.learning, pixels, self.feature_spec.blocks, self.feature_spec.patches)

    def model(self, adapter: Adapter) -> nn.Module:
        if self.learning is None:
            return adapter
        return nn.ModuleDict({"head": adapter, "backbone": self.learning.vit})

    def groups(self, adapter: Adapter, config: FitConfig) -> list[Group]:
        return super().groups(adapter, config) + ([] if self.learning is None else self.learning.groups())

    def tuned(self) -> Tuned | None:
        return None if self.learning is None else self.learning.result()


def open_feed(
    backbone: FrozenBackbone,
    splits: Splits,
    adapter: Adapter,
    config: TrainConfig,
    cache: str | Path,
    targets: Take,
    windows: RandomWindows | None = None,
) -> Feed:
    """The feed that the settings ask for.

    Args:
        targets: rows of train -> what is known of them: a value each, or a map (planes, side, side).
        windows: what training looks at, with their own targets, if not at whole images.

    Raises:
        UsageError: settings that this backbone or device cannot have.
    """
    check_precision(config.fit, backbone.device)
    if config.live:
        return LiveFeed(backbone, splits, adapter, config, cache, targets, windows)
    train, val = extract_splits(backbone, splits, adapter, cache)
    gathers = (partial(gather, train, device=backbone.device), partial(gather, val, device=backbone.device))
    return CachedFeed(backbone, gathers, (train.cls, train.mean), targets)


def check_precision(config: FitConfig, device: torch.device) -> None:
    """Raises a `UsageError` where half precision would only be slower: on a CPU."""
    if config.precision != "float32" and device.type != "cuda":
        raise UsageError(
            f"fit.precision {config.precision} is for CUDA; on {device.type} it would be slower and less exact: leave "
            "float32, or give --device cuda"
        )


def half_precision(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Autocast on CUDA, if `precision` is a half one."""
    if precision not in HALF:
        return nullcontext()
    found: AbstractContextManager[None] = torch.autocast(device.type, HALF[precision])
    return found


def in_precision(forward: Callable[[Features], Tensor], precision: str, device: torch.device) -> Callable[..., Tensor]:
    """`forward` within `half_precision`; what it gives is float32."""

    def run(features: Features) -> Tensor:
        with half_precision(precision, device):
            return forward(features).float()

    return run
