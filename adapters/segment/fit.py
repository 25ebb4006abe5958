"""Fitting segmenters: minutes on two cores where features are computed once."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dinomed.adapters.bundle import open_output, save_bundle
from dinomed.adapters.dense import Views
from dinomed.adapters.fitting.build import at_image_size, build_adapter, default_image_size
from dinomed.adapters.fitting.config import adapter_class
from dinomed.adapters.fitting.data import Splits, fit_splits
from dinomed.adapters.fitting.feed import in_precision, open_feed
from dinomed.adapters.fitting.loop import run_epochs
from dinomed.adapters.fitting.outcome import FitResult, chunks, training_record
from dinomed.adapters.fitting.resume import fit_key
from dinomed.adapters.seen import collect_seen
from dinomed.adapters.segment.config import SegmentConfig
from dinomed.adapters.segment.legend import Legend, build_legend, find_legend
from dinomed.adapters.segment.losses import build_loss
from dinomed.adapters.segment.masks import Masks, choose_thresholds, dice_of_logits
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError


def fit_segmenter(
    backbone: FrozenBackbone,
    manifest: Manifest,
    out: str | Path,
    config: SegmentConfig | None = None,
    *,
    store: str | Path,
    overwrite: bool = False,
) -> FitResult:
    """Fit a segmenter on the split train, keep the epoch with the best Dice on val, choose the thresholds on val at the
    images' own size (where a pixel may have several classes, or none), write a bundle to `out`.

    Args:
        store: where features are kept (`dinomed.features.extract.default_store`).

    Raises:
        UsageError: no masks, masks with values that no class has, no train split, a group in two splits, or `out` is
            in use.
    """
    config = config or SegmentConfig()
    legend, splits = prepare_masks(manifest, config)
    head = adapter_class("segment", config.head.name)
    size = config.image_size or default_image_size(backbone, head.grid)
    backbone = at_image_size(backbone, size)
    adapter = build_adapter(config, backbone, num_classes=len(legend.names))
    views = views_of_config(config, adapter.flips, adapter.scales)
    with open_output(out, config, overwrite=overwrite) as output:
        masks, val_masks = Masks(splits.train, size, "train", legend), Masks(splits.val, size, "val", legend)
        feed = open_feed(backbone, splits, adapter, config, store, masks.take)
        adapter.calibrate(feed.cls, feed.mean)
        adapter.to(backbone.device)
        loss = build_loss(config.loss, legend.exclusive, config.tversky_alpha)
        forward = in_precision(adapter, config.fit.precision, backbone.device)

        def stretch(logits: Tensor) -> Tensor:
            return interpolate(logits, (size, size), mode="bilinear")

        def validate() -> tuple[float, dict[str, float]]:
            scores = []
            for rows in chunks(len(splits.val), config.fit.batch_size):
                truth = val_masks.take(rows).to(backbone.device)
                scores.append(dice_of_logits(stretch(adapter(feed.val(rows))), truth, legend))
            mean = torch.cat(scores).mean().item()
            return mean, {"val_dice": mean}

        best = run_epochs(
            feed.model(adapter), config.fit, count=len(splits.train), batches=feed.train,
            batch_loss=lambda batch: loss(stretch(forward(batch.features)), batch.truth), validate=validate,
            seed=config.seed, folder=output.stage, description="training the segmenter",
            key=fit_key(config, splits, backbone, masks.digest() + val_masks.digest()),
            groups=feed.groups(adapter, config.fit),
        )  # fmt: skip
        metrics: dict[str, Any] = {"n": len(splits.val), "dice_at_training_size": best.values["val_dice"]}
        usage: dict[str, Any] = {"legend": legend.to_dict(), "views": vars(views)}
        threshold = None
        if not legend.exclusive:

            def probabilities(row: int, shape: tuple[int, int]) -> np.ndarray:
                maps = adapter(feed.val([row]))
                return interpolate(maps.float(), shape, mode="bilinear")[0].sigmoid().cpu().numpy()

            thresholds, metrics["dice"] = choose_thresholds(splits.val, probabilities, legend)
            usage["thresholds"] = thresholds
            threshold = thresholds[0] if len(thresholds) == 1 else None
        seen = collect_seen((splits.train, splits.val))
        training = training_record(config, splits, best, backbone)
        save_bundle(
            output, adapter, backbone, classes=list(legend.names), seen=seen, threshold=threshold, usage=usage,
            validation=metrics, training=training, tuned=feed.tuned(),
        )  # fmt: skip
    return FitResult(output.folder, best.epoch, metrics, threshold)


def prepare_masks(manifest: Manifest, config: SegmentConfig) -> tuple[Legend, Splits]:
    """What the masks mean, and the rows that have them, in train and val."""
    legend = build_legend(config.kind, config.classes) or find_legend(manifest)
    splits = fit_splits(legend.usable(manifest), None, config.seed)
    if len(splits.train) < 2:
        raise UsageError("train has one image with a mask only; a segmenter needs two or more")
    sides = zip(splits.train.column("width"), splits.train.column("height"), strict=True)
    if config.window and (longest := max(map(max, sides))) > config.window:
        raise UsageError(
            f"window {config.window}: train has images of {longest} px, which are looked at whole; give a window of "
            f"{longest} or more, or train on parts of them"
        )
    return legend, splits


def views_of_config(config: SegmentConfig, flips: bool, scales: tuple[float, ...]) -> Views:
    """How the bundle will look at images: as the settings say, else as the head does."""
    return Views(
        flips=flips if config.flips is None else config.flips,
        scales=(1.0,) if config.window else scales if config.scales is None else config.scales,
        window=config.window,
        overlap=config.overlap,
    )
