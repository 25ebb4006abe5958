"""Fitting adapters on cached features: a classifier in seconds, a segmenter in minutes on two cores."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from dinomed.adapters.build import at_image_size, build_adapter, default_segment_size, extract_splits, gather
from dinomed.adapters.bundle import open_output, save_bundle
from dinomed.adapters.config import ClassifyConfig, SegmentConfig, TrainConfig
from dinomed.adapters.data import Splits, class_indices, fit_splits, labelled, masked, train_classes, widen
from dinomed.adapters.loop import Best, run_epochs
from dinomed.adapters.masks import Masks, choose_threshold, dice
from dinomed.adapters.seen import collect_seen
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.store import FeatureStore
from dinomed.metrics.classification import classification_metrics

LESION = "lesion"


@dataclass(frozen=True)
class FitResult:
    """What a fit gives: the bundle's folder, the epoch kept, metrics on val, and the threshold of a segmenter."""

    folder: Path
    epoch: int
    validation: dict[str, Any]
    threshold: float | None = None


def fit_classifier(
    backbone: FrozenBackbone,
    manifest: Manifest,
    out: str | Path,
    config: ClassifyConfig | None = None,
    *,
    store: str | Path,
    overwrite: bool = False,
) -> FitResult:
    """Fit a classifier on the split train, keep the epoch with the lowest loss on val, write a bundle to `out`.

    Args:
        store: where features are kept (`dinomed.features.extract.default_store`).

    Raises:
        UsageError: no labels, one class only, no train split, a group in two splits, or `out` is in use.
    """
    config = config or ClassifyConfig()
    splits = fit_splits(labelled(manifest, config.label), config.label, config.seed)
    classes = train_classes(splits.train, config.label)
    labels = class_indices(splits.train, config.label, classes, "train")[0]
    val_labels, val_names = class_indices(splits.val, config.label, classes, "val")
    if not (val_labels < len(classes)).any():
        raise UsageError("no image in val has a class that train has; correct the splits, or scan with --split none")
    backbone = at_image_size(backbone, config.image_size or backbone.preprocessing.image_size)
    adapter = build_adapter(config, backbone, len(classes))
    with open_output(out, config, overwrite=overwrite) as output:
        train, val = extract_splits(backbone, splits, adapter, store)
        adapter.calibrate(train.cls, train.mean)
        adapter.to(backbone.device)
        y, val_y = (torch.from_numpy(indices).to(backbone.device) for indices in (labels, val_labels))
        weight = class_weights(labels, len(classes)).to(backbone.device) if config.class_weights == "balanced" else None
        known = val_y < len(classes)

        def logits(store: FeatureStore, rows: Sequence[int]) -> Tensor:
            return adapter(gather(store, rows, backbone.device))

        def batch_loss(indices: Tensor) -> Tensor:
            return cross_entropy(logits(train, indices.tolist()), y[indices], weight)

        def val_logits() -> Tensor:
            return torch.cat([logits(val, rows) for rows in _chunks(len(val), config.fit.batch_size)])

        def validate() -> tuple[float, dict[str, float]]:
            loss = cross_entropy(val_logits()[known], val_y[known], weight).item()
            return -loss, {"val_loss": loss}

        best = run_epochs(
            adapter, config.fit, count=len(labels), batch_loss=batch_loss, validate=validate, seed=config.seed,
            folder=output.stage, description="training the classifier",
        )  # fmt: skip
        with torch.no_grad():
            probabilities = val_logits().softmax(-1).cpu().numpy()
        metrics = classification_metrics(val_labels, widen(probabilities, len(val_names)), val_names)
        seen = collect_seen((splits.train, splits.val))
        training = _training(config, splits, best, backbone) | {"label_column": config.label}
        save_bundle(output, adapter, backbone, classes=classes, seen=seen, validation=metrics, training=training)
    return FitResult(output.folder, best.epoch, metrics)


def fit_segmenter(
    backbone: FrozenBackbone,
    manifest: Manifest,
    out: str | Path,
    config: SegmentConfig | None = None,
    *,
    store: str | Path,
    overwrite: bool = False,
) -> FitResult:
    """Fit a segmenter on the split train by Dice + cross-entropy, keep the epoch with the best Dice on val, choose the
    threshold on val at the images' own size, write a bundle to `out`.

    Args:
        store: where features are kept (`dinomed.features.extract.default_store`).

    Raises:
        UsageError: no masks, no train split, a group in two splits, or `out` is in use.
    """
    config = config or SegmentConfig()
    splits = fit_splits(masked(manifest), None, config.seed)
    size = config.image_size or default_segment_size(backbone)
    backbone = at_image_size(backbone, size)
    adapter = build_adapter(config, backbone, num_classes=1)
    with open_output(out, config, overwrite=overwrite) as output:
        train, val = extract_splits(backbone, splits, adapter, store)
        masks, val_masks = Masks(splits.train, size, "train"), Masks(splits.val, size, "val")
        adapter.calibrate(train.cls, train.mean)
        adapter.to(backbone.device)
        loss = DiceCELoss(sigmoid=True)

        def logits(store: FeatureStore, rows: Sequence[int]) -> Tensor:
            return adapter(gather(store, rows, backbone.device))

        def batch_loss(indices: Tensor) -> Tensor:
            rows = indices.tolist()
            up = interpolate(logits(train, rows), (size, size), mode="bilinear")
            return loss(up, masks.take(rows).to(up))

        def validate() -> tuple[float, dict[str, float]]:
            scores = []
            for rows in _chunks(len(val), config.fit.batch_size):
                up = interpolate(logits(val, rows), (size, size), mode="bilinear")
                scores.append(dice(up > 0, val_masks.take(rows).to(up)))
            mean = torch.cat(scores).mean().item()
            return mean, {"val_dice": mean}

        best = run_epochs(
            adapter, config.fit, count=len(train), batch_loss=batch_loss, validate=validate, seed=config.seed,
            folder=output.stage, description="training the segmenter",
        )  # fmt: skip
        threshold, val_dice = choose_threshold(splits.val, lambda rows: logits(val, rows))
        metrics = {"n": len(val), "dice": val_dice, "dice_at_training_size": best.values["val_dice"]}
        seen = collect_seen((splits.train, splits.val))
        training = _training(config, splits, best, backbone)
        save_bundle(
            output, adapter, backbone, classes=[LESION], seen=seen, threshold=threshold, validation=metrics,
            training=training,
        )  # fmt: skip
    return FitResult(output.folder, best.epoch, metrics, threshold)


def class_weights(labels: np.ndarray, num_classes: int) -> Tensor:
    """N / (classes * N of the class), float32: each class weighs the same in the sum over the images."""
    counts = np.bincount(labels, minlength=num_classes)
    return torch.from_numpy(len(labels) / (num_classes * np.maximum(counts, 1))).float()


def _chunks(count: int, size: int) -> list[list[int]]:
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def _training(config: TrainConfig, splits: Splits, best: Best, backbone: FrozenBackbone) -> dict[str, Any]:
    """What the bundle records of the fit: settings, and the data by counts and hashes, never by names."""
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
