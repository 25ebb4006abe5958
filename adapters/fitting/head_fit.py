"""The fit of a head: the steps that tasks define, its result, its record, and the key by which it is resumed."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from torch.nn.functional import interpolate

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.fitting.build import at_image_size, default_image_size, extract_blocks
from dinomed.adapters.fitting.config import FEW_VAL_GROUPS, MOST_REFITTED, TrainConfig, adapter_class
from dinomed.adapters.fitting.data import Splits
from dinomed.adapters.fitting.feature_sources.choose import open_feature_source
from dinomed.adapters.fitting.feature_sources.source import FeatureSource
from dinomed.adapters.fitting.image_batches import TargetLookup
from dinomed.adapters.fitting.loop import BestEpoch, run_epochs
from dinomed.adapters.fitting.optimizers import check_precision, in_precision
from dinomed.adapters.fitting.resume import STATE_FORMAT
from dinomed.adapters.fitting.tune import check_tune
from dinomed.adapters.fitting.windows import RandomWindows
from dinomed.adapters.record import AdapterRecord, BackboneReference
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.extract import resolve_blocks
from dinomed.io.files import to_json
from dinomed.io.prefetch import batched
from dinomed.log import logger
from dinomed.loggers.names import check_loggers
from dinomed.loggers.parameters import run_parameters

CALIBRATION_IMAGES = 64
"""Largest number of training images whose patch tokens a head reads before the fit."""


@dataclass(frozen=True)
class FitResult:
    """Result of a fit.

    Attributes:
        folder: of the bundle.
        epoch: that was kept; 0 for a head that is solved in closed form.
        validation: metrics on val.
        threshold: of a segmenter of one class.
        chosen: settings that a solved head chose on val.
        tried: the heads among which ``--head auto`` chose: ``head``, the metric on val, ``seconds`` and ``kept``.
        refitted_on: number of images of train and val on which the head was trained again after it was measured; 0 if
            it was not.
    """

    folder: Path
    epoch: int
    validation: dict[str, Any]
    threshold: float | None = None
    chosen: dict[str, Any] = field(default_factory=dict)
    tried: list[dict[str, Any]] = field(default_factory=list)
    refitted_on: int = 0


@dataclass(frozen=True)
class FitOutcome:
    """What a task adds to the bundle after the training.

    Attributes:
        classes: names of the classes, in the order of the head's channels.
        validation: metrics on val.
        usage: settings for the use of the head; see `dinomed.adapters.record.AdapterRecord`.
        threshold: of a segmenter of one class, in (0, 1).
        training: further entries of the record of the training.
        chosen: settings that a solved head chose on val.
    """

    classes: list[str]
    validation: dict[str, Any]
    usage: dict[str, Any] = field(default_factory=dict)
    threshold: float | None = None
    training: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)


class HeadFit(ABC):
    """One fit of a head. Each task has a subclass; `dinomed.adapters.fit.fit_head` calls its members in this order.

    1. `check`, `select_rows`, then `image_size`: sets `splits` and `backbone` (at the image size of the fit);
    2. `build`: sets `adapter`; it also sets `targets`, and where a task has them `windows` and `digest`;
    3. `open_features`: sets `features`;
    4. `train`, which calls `loss` and `validate`;
    5. `finish`.

    Attributes:
        targets: function from rows of train to their targets.
        windows: random windows with their own targets, instead of whole images.
        digest: hash of the masks or depth maps, for the key of the fit.
        shared_blocks: blocks whose features are extracted together, because other heads read them too.
        cache: folder of cached features, for the calibration of a head that reads patch tokens before the fit.
    """

    description: ClassVar[str] = "training the head"
    """Text of the progress bar."""
    can_refit: ClassVar[bool] = False
    """Whether the head may be trained again on train and val: what `finish` chooses on val is then valid for it."""
    splits: Splits
    backbone: FrozenBackbone
    adapter: Adapter
    features: FeatureSource
    targets: TargetLookup
    windows: RandomWindows | None = None
    digest: bytes = b""
    shared_blocks: Sequence[int] = ()
    cache: str | Path = ""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def select_rows(self, manifest: Manifest) -> Splits:
        """Return the rows of train and val that have targets. Raise a `UsageError` if they do not suffice."""

    def fold_rows(self, manifest: Manifest) -> tuple[Manifest, list[tuple[str, ...]]]:
        """Return the rows that have targets, and the labels of each, by which the folds of a cross-validation are
        stratified; no labels by default."""
        return manifest, [()] * len(manifest)

    def target_columns(self) -> tuple[str, ...]:
        """Return the columns with the paths of masks or depth maps; none by default."""
        return ()

    def image_size(self, backbone: FrozenBackbone) -> int:
        """Return the side of the square to which images are resized, px."""
        grid = adapter_class(self.config.task, self.config.head.name).grid
        return self.config.image_size or default_image_size(backbone, grid)

    def check(self, backbone: FrozenBackbone) -> None:
        """Check the settings before images are read and files are written.

        Raises:
            UsageError: this backbone or device does not support a setting, or the package of a logger is missing.
        """
        config = self.config
        check_loggers(config.fit.loggers, "fit.loggers")
        check_precision(config.fit, backbone.device)
        if config.fit.refit == "always" and not self.can_refit:
            raise UsageError(f"fit.refit=always is for the task segment, and this task is {config.task}; leave it out")
        if config.fit.refit == "always" and config.fit.keep == "best":
            raise UsageError("fit.refit=always keeps the last epoch, and fit.keep=best another one; set fit.keep=last")
        sized = at_image_size(backbone, self.image_size(backbone), config.aspect)
        if sized.preprocessing.aspect == "keep":
            check_rectangles(config)
        head = adapter_class(config.task, config.head.name).resolve_config(config.head, backbone)
        check_tune(config.tune, backbone, max(resolve_blocks(head.blocks, backbone.depth)))

    @abstractmethod
    def build(self) -> Adapter:
        """Read the targets and return the untrained head."""

    def build_untrained(self) -> Adapter:
        """Return the untrained head of `backbone` and the classes of `splits`; reads no masks and no depth maps."""
        return self.build()

    def feature_parts(self) -> list[tuple[FrozenBackbone, Manifest, Manifest]]:
        """Return the backbone at each image size, with the images of train and of val whose features are kept."""
        return [(self.backbone, self.splits.train, self.splits.val)]

    def open_features(self, cache: str | Path) -> FeatureSource:
        """Return the features of train and val."""
        return open_feature_source(
            self.backbone, self.splits, self.adapter, self.config, cache, self.targets, self.windows, self.shared_blocks
        )

    def sample_patches(self) -> Iterator[np.ndarray]:
        """Yield the patch tokens of up to `CALIBRATION_IMAGES` training images, without augmentation and windows, of
        the backbone before it is tuned; float32 (blocks * C, rows, columns)."""
        images, spec = self.splits.train.take(calibration_rows(len(self.splits.train))), self.adapter.feature_spec
        title = "features for the calibration of the head"
        features = extract_blocks(self.backbone, images, spec, (), cache=self.cache, description=title)
        for row in range(len(images)):
            yield features.patches([row])[0].astype(np.float32)

    def train(self, folder: Path, *, measured: bool = True) -> BestEpoch:
        """Train the head by epochs; its state and its log are written to `folder`.

        Without `measured` nothing is measured on val, the last epoch is kept, and loggers get nothing.
        """
        config, features, device = self.config, self.features, self.backbone.device
        self.adapter.calibrate(features.cls, features.mean)
        if self.adapter.calibrates_patches:
            self.adapter.calibrate_patches(self.sample_patches())
        self.adapter.to(device)
        forward = in_precision(self.adapter, config.fit.precision, device)
        settings = config.fit if measured else config.fit.model_copy(update={"loggers": ("jsonl",)})
        return run_epochs(
            features.model(self.adapter), settings, count=len(features.cls), batches=features.train,
            batch_loss=lambda batch: self.loss(forward(batch.features), batch.targets),
            validate=self.validate if measured else lambda: (0.0, {}),
            seed=config.seed, folder=folder, key=fit_key(config, self.splits, self.backbone, self.digest),
            description=self.description if measured else "training on train and val",
            groups=features.groups(self.adapter, config.fit),
            keep_last=self.keeps_last() if measured else True, grids=features.grids,
            name=f"{config.task} {config.head.name}", parameters=run_parameters(config),
        )  # fmt: skip

    def keeps_last(self) -> bool:
        """Return whether the last epoch is kept, see `FitConfig`; a message says so where it is by the data."""
        if not self.val_is_small():
            return self.config.fit.keep == "last" or self.config.fit.refit == "always"
        logger.info(
            f"the last epoch is kept: val has {len(set(self.splits.val.units()))} groups, fewer than {FEW_VAL_GROUPS}, "
            "which do not rank epochs (fit.keep=best chooses by them)"
        )
        return True

    def refits(self) -> bool:
        """Return whether the head is trained again on train and val, see `FitConfig`."""
        fit, images = self.config.fit, len(self.splits.train) + len(self.splits.val)
        if not self.can_refit or fit.refit != "auto":
            return self.can_refit and fit.refit == "always"
        return self.val_is_small() and fit.seconds is None and images <= MOST_REFITTED

    def val_is_small(self) -> bool:
        """Return whether `keep` is auto and val has too few groups to choose an epoch by them."""
        groups = len(set(self.splits.val.units()))
        return self.config.fit.keep == "auto" and self.config.augment.active and groups < FEW_VAL_GROUPS

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch from the outputs of the head and the targets."""

    @abstractmethod
    def validate(self) -> tuple[float, dict[str, float]]:
        """Return the score of the head on val (higher is better), and values for the log; called without gradients."""

    def score(self, outcome: FitOutcome) -> tuple[str, float]:
        """Return name and value of the metric on val by which ``--head auto`` chooses; higher is better."""
        raise NotImplementedError

    @abstractmethod
    def finish(self, best: BestEpoch) -> FitOutcome:
        """Choose on val what the head needs, such as a threshold, and measure it; called without gradients."""

    def draft_record(self, classes: Sequence[str], usage: dict[str, Any]) -> AdapterRecord:
        """Return the record of the future bundle with what is chosen so far, for a predictor that measures on val."""
        base = self.backbone
        return AdapterRecord(
            task=self.config.task, head=self.adapter.config.model_dump(mode="json"), classes=tuple(classes),
            backbone=BackboneReference(name=base.name, fingerprint=base.fingerprint, embed_dim=base.embed_dim),
            preprocessing=base.preprocessing, validation={}, training={}, weights_sha256="", usage=usage,
        )  # fmt: skip

    def val_outputs(self, count: int) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the rows of each batch of the `count` validation examples, with the outputs of the head."""
        for rows in split_rows(count, self.config.fit.batch_size, self.features.val_grids):
            yield rows, self.adapter(self.features.val(rows))

    def stretch(self, maps: Tensor, targets: Tensor) -> Tensor:
        """Resize maps (B, planes, rows, columns) to the size of their targets (B, planes, height, width)."""
        return interpolate(maps, targets.shape[-2:], mode="bilinear")


def calibration_rows(count: int) -> list[int]:
    """Return at most `CALIBRATION_IMAGES` of the rows 0 to `count` - 1, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, CALIBRATION_IMAGES)).round().astype(int)).tolist()


def check_rectangles(config: TrainConfig) -> None:
    """Check that a head can be fitted on images whose patch grids have different shapes (`aspect` keep).

    Raises:
        UsageError: windows of images, or one batch of the patch tokens of all images.
    """
    if getattr(config, "window", None):
        raise UsageError("windows are squares, and `aspect=keep` is for whole images; use `aspect=square` or no window")
    if config.fit.optimizer == "lbfgs" and adapter_class(config.task, config.head.name).uses_patches:
        raise UsageError(
            "fit.optimizer: lbfgs uses the patches of all images at once, whose grids have different shapes with "
            "`aspect=keep`; set adamw"
        )


def split_rows(count: int, size: int, grids: np.ndarray | None = None) -> list[list[int]]:
    """Return the rows 0 to `count` - 1 in batches of `size`, in order; with `grids` (N, 2) a batch has one grid.

    >>> split_rows(5, 2)
    [[0, 1], [2, 3], [4]]
    """
    return list(batched(range(count), size, None if grids is None else lambda row: tuple(grids[row])))


def fit_key(config: TrainConfig, splits: Splits, backbone: FrozenBackbone, targets: bytes = b"") -> str:
    """Return a hash of all inputs of a fit.

    These are the settings without the loggers, the rows of train and val with all columns, `targets` (the digest of
    masks or depth maps), the backbone, the kind of device, the versions of dinomed and torch, and the format of the
    state of a fit.
    """
    device = backbone.device.type
    settings = config.model_dump(mode="json", exclude={"fit": {"loggers"}})
    inputs = [settings, backbone.fingerprint, device, version("dinomed"), version("torch"), STATE_FORMAT]
    rows = [part.table.to_pydict() for part in (splits.train, splits.val)]
    return hashlib.sha256(to_json([inputs, rows]).encode() + targets).hexdigest()


def training_record(config: TrainConfig, splits: Splits, best: BestEpoch, backbone: FrozenBackbone) -> dict[str, Any]:
    """Return the entry ``training`` of a bundle's record: settings, and counts and hashes of the data (no names)."""
    return {
        "config": config.model_dump(mode="json"),
        "epoch": best.epoch,
        "device": str(backbone.device),
        "data": {
            "train": {"images": len(splits.train), "manifest": splits.train.fingerprint},
            "val": {"images": len(splits.val), "manifest": splits.val.fingerprint},
            "val_made_here": splits.made,
            "by_group": splits.train.has("group"),
        },
    }
