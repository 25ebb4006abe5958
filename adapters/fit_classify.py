"""Fitting classifiers on cached features: seconds on two cores."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dinomed.adapters.build import at_image_size, build_adapter, extract_splits, gather
from dinomed.adapters.bundle import open_output, save_bundle
from dinomed.adapters.config_classify import ClassifyConfig
from dinomed.adapters.data import class_indices, fit_splits, labelled, train_classes, widen
from dinomed.adapters.fitting import FitResult, chunks, training_record
from dinomed.adapters.loop import run_epochs
from dinomed.adapters.seen import collect_seen
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.store import FeatureStore
from dinomed.metrics.classification import classification_metrics


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
            return torch.cat([logits(val, rows) for rows in chunks(len(val), config.fit.batch_size)])

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
        training = training_record(config, splits, best, backbone) | {"label_column": config.label}
        save_bundle(output, adapter, backbone, classes=classes, seen=seen, validation=metrics, training=training)
    return FitResult(output.folder, best.epoch, metrics)


def class_weights(labels: np.ndarray, num_classes: int) -> Tensor:
    """N / (classes * N of the class), float32: each class weighs the same in the sum over the images."""
    counts = np.bincount(labels, minlength=num_classes)
    return torch.from_numpy(len(labels) / (num_classes * np.maximum(counts, 1))).float()
