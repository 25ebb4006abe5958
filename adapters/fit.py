"""Training of a head of any task: a manifest and a frozen backbone to a bundle."""

from pathlib import Path

import torch

from dinomed.adapters.bundle import open_output, save_bundle
from dinomed.adapters.fitting.build import at_image_size
from dinomed.adapters.fitting.config import TrainConfig
from dinomed.adapters.fitting.head_fit import FitResult, training_record
from dinomed.adapters.task import find_task
from dinomed.adapters.training_images import hash_training_images
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest


def fit_head(
    backbone: FrozenBackbone,
    manifest: Manifest,
    out: str | Path,
    config: TrainConfig,
    *,
    cache: str | Path,
    overwrite: bool = False,
) -> FitResult:
    """Fit a head on the split train, choose on val, and write a bundle. `HeadFit` describes the steps.

    The epoch with the best score on val is kept. Classifiers and depth estimators are scored by the loss, segmenters by
    the Dice; k, C or the head of a grid is chosen by the macro AUROC.

    Args:
        backbone: the frozen backbone.
        manifest: images with targets.
        out: folder of the bundle.
        config: settings; their class decides the task.
        cache: folder of cached features (`dinomed.features.extract.default_cache`).
        overwrite: replace an older adapter in `out`.

    Raises:
        UsageError: there are no targets, only one class or no split train; a group is in two splits; or `out` is in
            use.
        DinomedError: an image, a mask or a depth map is damaged.
    """
    fit = find_task(config.task).head_fit(config)
    fit.splits = fit.select_rows(manifest)
    fit.backbone = at_image_size(backbone, fit.image_size(backbone))
    with open_output(out, config, overwrite=overwrite) as output:
        fit.adapter = fit.build()
        fit.features = fit.open_features(cache)
        best = fit.train(output.stage)
        with torch.no_grad():
            outcome = fit.finish(best)
        save_bundle(
            output, fit.adapter, fit.backbone, classes=outcome.classes, threshold=outcome.threshold,
            seen=hash_training_images((fit.splits.train, fit.splits.val)), usage=outcome.usage,
            validation=outcome.validation, tuned=fit.features.tuned(),
            training=training_record(config, fit.splits, best, fit.backbone) | outcome.training,
        )  # fmt: skip
    return FitResult(output.folder, best.epoch, outcome.validation, outcome.threshold, outcome.chosen)
