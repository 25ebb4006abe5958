"""Training of depth estimators."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dinomed.adapters.bundle import open_output, save_bundle
from dinomed.adapters.fitting.build import at_image_size, build_adapter, default_image_size
from dinomed.adapters.fitting.config import adapter_class
from dinomed.adapters.fitting.data import fit_splits
from dinomed.adapters.fitting.feature_source import TrainingBatch, in_precision, open_feature_source
from dinomed.adapters.fitting.fit_record import FitResult, fit_key, split_rows, training_record
from dinomed.adapters.fitting.loop import run_epochs
from dinomed.adapters.heads.depth import with_range
from dinomed.adapters.inference.dense import Views
from dinomed.adapters.tasks.depth.config import DepthConfig
from dinomed.adapters.tasks.depth.losses import gradient_loss, sig_loss
from dinomed.adapters.tasks.depth.maps import DepthMaps, DepthSource
from dinomed.adapters.training_images import hash_training_images
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.metrics.depth import depth_errors, depth_metrics

DEPTH = "depth"


def fit_depth(
    backbone: FrozenBackbone,
    manifest: Manifest,
    out: str | Path,
    config: DepthConfig | None = None,
    *,
    cache: str | Path,
    overwrite: bool = False,
) -> FitResult:
    """Fit a depth estimator on the split train by SigLoss and the gradient loss, and write a bundle.

    The epoch with the lowest SigLoss on val is kept. The range of depths is that of the settings, else that of train.

    Args:
        backbone: the frozen backbone.
        manifest: images with depth maps.
        out: folder of the bundle.
        config: settings; None for the defaults.
        overwrite: replace an older adapter in `out`.
        cache: folder of cached features (`dinomed.features.extract.default_cache`).

    Raises:
        UsageError: there are no depth maps or no split train, a group is in two splits, or `out` is in use.
        DinomedError: a depth map is damaged, or no pixel has a known depth.
    """
    config = config or DepthConfig()
    source = DepthSource(config.column, config.scale, config.unit)
    splits = fit_splits(source.usable(manifest), None, config.seed)
    head = adapter_class("depth", config.head.name)
    size = config.image_size or default_image_size(backbone, head.grid)
    backbone = at_image_size(backbone, size)
    with open_output(out, config, overwrite=overwrite) as output:
        targets, val_targets = (
            DepthMaps(part, source, size, name) for name, part in (("train", splits.train), ("val", splits.val))
        )
        ranged = config.model_copy(update={"head": with_range(config.head, targets.low, targets.high)})
        adapter = build_adapter(ranged, backbone, num_classes=1)
        low, high = adapter.config.limits()
        features = open_feature_source(backbone, splits, adapter, config, cache, targets.take)
        adapter.calibrate(features.cls, features.mean)
        adapter.to(backbone.device)
        forward = in_precision(adapter, config.fit.precision, backbone.device)

        def stretch(depths: Tensor) -> Tensor:
            return interpolate(depths, (size, size), mode="bilinear")

        def within(depths: Tensor) -> Tensor:
            """Set depths outside the range to nan (unknown), as the metrics do."""
            return torch.where((depths >= low) & (depths <= high), depths, torch.nan)

        def batch_loss(batch: TrainingBatch) -> Tensor:
            prediction, known = stretch(forward(batch.features)), within(batch.targets)
            return sig_loss(prediction, known) + config.gradient_weight * gradient_loss(prediction, known)

        def validate() -> tuple[float, dict[str, float]]:
            losses = []
            for rows in split_rows(len(splits.val), config.fit.batch_size):
                known = within(val_targets.take(rows).to(backbone.device))
                losses.append(sig_loss(stretch(adapter(features.val(rows))), known).item() * len(rows))
            loss = sum(losses) / len(splits.val)
            return -loss, {"val_sig_loss": loss}

        best = run_epochs(
            features.model(adapter), config.fit, count=len(splits.train), batches=features.train, batch_loss=batch_loss,
            validate=validate, seed=config.seed, folder=output.stage, description="training the depth estimator",
            key=fit_key(config, splits, backbone, targets.digest() + val_targets.digest()),
            groups=features.groups(adapter, config.fit),
        )  # fmt: skip
        errors = []
        with torch.no_grad():
            for row in range(len(splits.val)):
                known = source.read(splits.val, row)
                predicted = interpolate(adapter(features.val([row])), known.shape, mode="bilinear")
                errors.append(depth_errors(known, predicted[0, 0].cpu().numpy(), *limits_of_metrics(low, high)))
        metrics = depth_metrics(errors)
        seen = hash_training_images((splits.train, splits.val))
        views = Views(flips=adapter.flips if config.flips is None else config.flips)
        usage = {"depth": source.to_dict() | {"low": low, "high": high}, "views": vars(views)}
        save_bundle(
            output, adapter, backbone, classes=[DEPTH], seen=seen, usage=usage, validation=metrics,
            training=training_record(config, splits, best, backbone), tuned=features.tuned(),
        )  # fmt: skip
    return FitResult(output.folder, best.epoch, metrics)


def limits_of_metrics(low: float, high: float) -> tuple[float, float]:
    """Return the range for `depth_errors`, which excludes its lower end, so that `low` itself is included."""
    return float(np.nextafter(np.float32(low), np.float32(0))), high
