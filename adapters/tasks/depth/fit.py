"""Training of depth estimators."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.fitting.build import build_adapter
from dinomed.adapters.fitting.data import Splits, fit_splits
from dinomed.adapters.fitting.head_fit import FitOutcome, HeadFit
from dinomed.adapters.fitting.loop import BestEpoch
from dinomed.adapters.heads.depth import with_range
from dinomed.adapters.inference.dense import Views
from dinomed.adapters.tasks.depth.config import DepthConfig
from dinomed.adapters.tasks.depth.losses import gradient_loss, sig_loss
from dinomed.adapters.tasks.depth.maps import DepthMaps, DepthSource
from dinomed.adapters.tasks.depth.predict import DepthPredictor
from dinomed.datasets.manifest import Manifest
from dinomed.metrics.depth import depth_errors, depth_metrics

DEPTH = "depth"


class DepthFit(HeadFit):
    """Fit of a depth estimator by SigLoss and the gradient loss; the epoch with the lowest SigLoss on val is kept.

    The range of depths is that of the settings, else that of train.
    """

    description = "training the depth estimator"
    config: DepthConfig

    def select_rows(self, manifest: Manifest) -> Splits:
        self.source = DepthSource(self.config.column, self.config.scale, self.config.unit)
        return fit_splits(self.source.usable(manifest), None, self.config.seed)

    def fold_rows(self, manifest: Manifest) -> tuple[Manifest, list[tuple[str, ...]]]:
        usable = DepthSource(self.config.column, self.config.scale, self.config.unit).usable(manifest)
        return usable, [()] * len(usable)

    def target_columns(self) -> tuple[str, ...]:
        return (self.config.column,)

    def build(self) -> Adapter:
        maps, self.val_maps = (
            DepthMaps(part, self.source, self.backbone.preprocessing, name)
            for name, part in (("train", self.splits.train), ("val", self.splits.val))
        )
        self.targets, self.digest = maps.take, maps.digest() + self.val_maps.digest()
        ranged = self.config.model_copy(update={"head": with_range(self.config.head, maps.low, maps.high)})
        adapter = build_adapter(ranged, self.backbone, num_classes=1)
        self.low, self.high = adapter.config.limits()
        return adapter

    def build_untrained(self) -> Adapter:
        head: Any = self.config.head  # a range that is not set follows from the depth maps, and has no weights
        ranged = with_range(head, (head.high or 2.0) / 2, (head.low or 1.0) * 2)
        return build_adapter(self.config.model_copy(update={"head": ranged}), self.backbone, num_classes=1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        prediction, known = self.stretch(outputs, targets), self._within(targets)
        return sig_loss(prediction, known) + self.config.gradient_weight * gradient_loss(prediction, known)

    def validate(self) -> tuple[float, dict[str, float]]:
        losses = []
        for rows, outputs in self.val_outputs(len(self.splits.val)):
            known = self._within(self.val_maps.take(rows).to(self.backbone.device))
            losses.append(sig_loss(self.stretch(outputs, known), known).item() * len(rows))
        loss = sum(losses) / len(self.splits.val)
        return -loss, {"val_sig_loss": loss}

    def finish(self, best: BestEpoch) -> FitOutcome:
        views = Views(flips=self.adapter.flips if self.config.flips is None else self.config.flips)
        usage = {"depth": self.source.to_dict() | {"low": self.low, "high": self.high}, "views": vars(views)}
        limits, errors = limits_of_metrics(self.low, self.high), []
        for row, predicted in enumerate(self._predict_val(usage, mirrored=views.flips)):
            errors.append(depth_errors(self.source.read(self.splits.val, row), predicted, *limits))
        return FitOutcome([DEPTH], depth_metrics(errors), usage)

    def _predict_val(self, usage: dict[str, Any], *, mirrored: bool) -> Iterator[np.ndarray]:
        """Yield the depths (H, W) of each image of val as the bundle predicts them, at the size of the image."""
        val, reading = self.splits.val, self.backbone.preprocessing
        if mirrored:
            predictor = DepthPredictor(self.draft_record([DEPTH], usage), self.adapter, self.features.backbone)
            yield from (maps[0] for maps in predictor.manifest_maps(val))
            return
        sizes = zip(val.column("height"), val.column("width"), strict=True)
        for row, size in enumerate(sizes):  # from features that are computed already
            yield reading.from_input(self.adapter(self.features.val([row])), size)[0, 0].cpu().numpy()

    def _within(self, depths: Tensor) -> Tensor:
        """Set depths outside the range to nan (unknown), as the metrics do."""
        return torch.where((depths >= self.low) & (depths <= self.high), depths, torch.nan)


def limits_of_metrics(low: float, high: float) -> tuple[float, float]:
    """Return the range for `depth_errors`, which excludes its lower end, so that `low` itself is included."""
    return float(np.nextafter(np.float32(low), np.float32(0))), high
