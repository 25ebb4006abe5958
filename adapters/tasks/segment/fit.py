"""Training of segmenters. It takes minutes on two cores if features are cached."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dinomed.adapters.adapter import Adapter
from dinomed.adapters.bundle import open_output, save_bundle
from dinomed.adapters.fitting.build import at_image_size, build_adapter, default_image_size
from dinomed.adapters.fitting.config import adapter_class
from dinomed.adapters.fitting.data import Splits, fit_splits
from dinomed.adapters.fitting.feature_source import in_precision, open_feature_source
from dinomed.adapters.fitting.fit_record import FitResult, fit_key, split_rows, training_record
from dinomed.adapters.fitting.image_batches import TargetLookup
from dinomed.adapters.fitting.loop import run_epochs
from dinomed.adapters.fitting.windows import RandomWindows
from dinomed.adapters.inference.dense import Views
from dinomed.adapters.record import AdapterRecord, BackboneReference
from dinomed.adapters.tasks.segment.config import SegmentConfig
from dinomed.adapters.tasks.segment.losses import build_loss
from dinomed.adapters.tasks.segment.mask_schema import MaskSchema, build_mask_schema, find_mask_schema
from dinomed.adapters.tasks.segment.masks import (
    Masks,
    WholeMasks,
    choose_thresholds,
    dice_of_logits,
    dice_of_maps,
    shrink_targets,
)
from dinomed.adapters.tasks.segment.predict import SegmentPredictor
from dinomed.adapters.training_images import hash_training_images
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.loading import load_batches, stack_pixels
from dinomed.io.prefetch import prefetch


def fit_segmenter(
    backbone: FrozenBackbone,
    manifest: Manifest,
    out: str | Path,
    config: SegmentConfig | None = None,
    *,
    cache: str | Path,
    overwrite: bool = False,
) -> FitResult:
    """Fit a segmenter on the split train, and write a bundle.

    The epoch with the best Dice on val is kept. If classes are not exclusive, thresholds are chosen on val, at the
    size of the images, with the mirror images, sizes or windows with which the bundle predicts.

    Args:
        backbone: the frozen backbone.
        manifest: images with masks.
        out: folder of the bundle.
        config: settings; None for the defaults.
        overwrite: replace an older adapter in `out`.
        cache: folder of cached features (`dinomed.features.extract.default_cache`).

    Raises:
        UsageError: there are no masks, masks have values of no class, there is no split train, a group is in two
            splits, or `out` is in use.
    """
    config = config or SegmentConfig()
    schema, splits = prepare_masks(manifest, config)
    head = adapter_class("segment", config.head.name)
    size = config.image_size or default_image_size(backbone, head.grid)
    backbone = at_image_size(backbone, size)
    adapter = build_adapter(config, backbone, num_classes=len(schema.names))
    views = views_of_config(config, adapter.flips, adapter.scales)
    with open_output(out, config, overwrite=overwrite) as output:
        targets = _read_targets(config, splits, size, schema)
        features = open_feature_source(backbone, splits, adapter, config, cache, targets.take, targets.windows)
        adapter.calibrate(features.cls, features.mean)
        adapter.to(backbone.device)
        loss = build_loss(config.loss, schema.exclusive, config.tversky_alpha)
        forward = in_precision(adapter, config.fit.precision, backbone.device)
        usage: dict[str, Any] = {"legend": schema.to_dict(), "views": vars(views)}
        predictor = _as_bundle(adapter, backbone, features.backbone, schema, usage)

        def stretch(logits: Tensor) -> Tensor:
            return interpolate(logits, (size, size), mode="bilinear")

        def validate_squares() -> Iterator[float]:
            for rows in split_rows(len(splits.val), config.fit.batch_size):
                logits = stretch(adapter(features.val(rows)))
                yield from dice_of_logits(logits, targets.val(rows).to(backbone.device), schema).tolist()

        def validate_windows() -> Iterator[float]:
            val_masks = prefetch(partial(schema.read, splits.val), range(len(splits.val)), None)
            for maps, known in zip(predicted_maps(predictor, splits.val), val_masks, strict=True):
                yield dice_of_maps(maps, known, schema)

        def validate() -> tuple[float, dict[str, float]]:
            mean = float(np.mean(list(validate_squares() if targets.windows is None else validate_windows())))
            return mean, {"val_dice": mean}

        best = run_epochs(
            features.model(adapter), config.fit, count=len(splits.train), batches=features.train,
            batch_loss=lambda batch: loss(stretch(forward(batch.features)), batch.targets), validate=validate,
            seed=config.seed, folder=output.stage, description="training the segmenter",
            key=fit_key(config, splits, backbone, targets.digest),
            groups=features.groups(adapter, config.fit),
        )  # fmt: skip
        measured = "dice_at_training_size" if targets.windows is None else "dice_by_windows"
        metrics: dict[str, Any] = {"n": len(splits.val), measured: best.values["val_dice"]}
        threshold = None
        if not schema.exclusive:
            plain = not views.native and not views.flips
            predicted = None if plain else predicted_maps(predictor, splits.val)

            def probabilities(row: int, shape: tuple[int, int]) -> np.ndarray:
                if predicted is not None:
                    return next(predicted)
                maps = adapter(features.val([row]))  # from features that are computed already
                return interpolate(maps.float(), shape, mode="bilinear")[0].sigmoid().cpu().numpy()

            thresholds, metrics["dice"] = choose_thresholds(splits.val, probabilities, schema)
            usage["thresholds"] = thresholds
            threshold = thresholds[0] if len(thresholds) == 1 else None
        seen = hash_training_images((splits.train, splits.val))
        training = training_record(config, splits, best, backbone)
        save_bundle(
            output, adapter, backbone, classes=list(schema.names), seen=seen, threshold=threshold, usage=usage,
            validation=metrics, training=training, tuned=features.tuned(),
        )  # fmt: skip
    return FitResult(output.folder, best.epoch, metrics, threshold)


@dataclass(frozen=True)
class _Targets:
    """Masks at the training size.

    Attributes:
        take: rows of train to their masks; windows bring their own.
        val: rows of val to their masks.
        digest: hash of all masks.
        windows: random windows of train, if training uses them.
    """

    take: TargetLookup
    val: TargetLookup
    digest: bytes
    windows: RandomWindows | None = None


def _read_targets(config: SegmentConfig, splits: Splits, size: int, schema: MaskSchema) -> _Targets:
    """Read the masks of train and val."""
    if config.crop is None:
        masks, val = Masks(splits.train, size, "train", schema), Masks(splits.val, size, "val", schema)
        return _Targets(masks.take, val.take, masks.digest() + val.digest())
    assert config.window is not None
    whole = WholeMasks(splits.train, "train", schema)
    val_digest = Masks(splits.val, size, "val", schema).digest()
    windows = RandomWindows(
        config.window, config.crop, whole.read, whole.marked, partial(shrink_targets, size=size, schema=schema),
        whole.background,
    )  # fmt: skip
    nothing = lambda rows: torch.zeros(len(rows))
    return _Targets(nothing, nothing, whole.digest() + val_digest, windows)


def _as_bundle(
    adapter: Adapter, base: FrozenBackbone, backbone: FrozenBackbone, schema: MaskSchema, usage: dict[str, Any]
) -> SegmentPredictor:
    """Return the predictor of the future bundle, while head and backbone (a tuned `base`) are still trained.

    It makes the choices on val valid for the predictions of the bundle.
    """
    record = AdapterRecord(
        task="segment", head=adapter.config.model_dump(mode="json"), classes=tuple(schema.names), usage=usage,
        backbone=BackboneReference(name=base.name, fingerprint=base.fingerprint, embed_dim=base.embed_dim),
        preprocessing=base.preprocessing, validation={}, training={}, weights_sha256="",
    )  # fmt: skip
    return SegmentPredictor(record, adapter, backbone)


def predicted_maps(predictor: SegmentPredictor, manifest: Manifest) -> Iterator[np.ndarray]:
    """Yield the probabilities (classes, H, W) of each image, as the bundle predicts them."""
    for loaded in load_batches(manifest, predictor.preprocessing, predictor.batch_size):
        yield from predictor.batch_maps(stack_pixels(loaded), [image.size for image in loaded])


def prepare_masks(manifest: Manifest, config: SegmentConfig) -> tuple[MaskSchema, Splits]:
    """Return the mask schema, and the rows of train and val with masks."""
    schema = build_mask_schema(config.kind, config.classes) or find_mask_schema(manifest)
    splits = fit_splits(schema.usable(manifest), None, config.seed)
    if len(splits.train) < 2:
        raise UsageError("train has only one image with a mask; a segmenter needs two or more")
    sides = zip(splits.train.column("width"), splits.train.column("height"), strict=True)
    if config.window and config.crop is None and (longest := max(map(max, sides))) > config.window:
        raise UsageError(
            f"window {config.window}: train has images of {longest} px, which are used as a whole; add --set crop=0.5 "
            "to train on random windows of them, half of which contain a part of the mask, or give a window of "
            f"{longest} or more"
        )
    return schema, splits


def views_of_config(config: SegmentConfig, flips: bool, scales: tuple[float, ...]) -> Views:
    """Return the views of the bundle: those of the settings, else the defaults of the head."""
    return Views(
        flips=flips if config.flips is None else config.flips,
        scales=(1.0,) if config.window else scales if config.scales is None else config.scales,
        window=config.window,
        overlap=config.overlap,
    )
