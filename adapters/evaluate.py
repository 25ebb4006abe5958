"""Metrics of a saved adapter on one split, through the same path as prediction: image in, prediction out."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinomed.adapters.bundle import PURPOSE
from dinomed.adapters.data import class_indices, labelled, masked, select_split, widen
from dinomed.adapters.folders import batches
from dinomed.adapters.masks import load_mask
from dinomed.adapters.predict import ClassifyPredictor, SegmentPredictor, load_adapter
from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError
from dinomed.features.compute import Loaded
from dinomed.metrics.classification import classification_metrics
from dinomed.metrics.segmentation import overlap, segmentation_metrics
from dinomed.progress import bar


def evaluate(
    folder: str | Path,
    manifest: Manifest,
    split: str = "test",
    *,
    device: str = "cpu",
    backbone: str | Path | None = None,
) -> dict[str, Any]:
    """Metrics over the images of `split` that have a mask (segmenter) or a label (classifier).

    Masks are compared at each image's own size. See `dinomed.metrics` for what the values mean and for the policy on
    empty masks and absent classes.

    Returns:
        `task`, `split`, `metrics`, `threshold` or `classes`, and what identifies adapter, backbone and images.

    Raises:
        UsageError: no labels or masks, an empty split, or no adapter in `folder`.
        DinomedError: an image or mask cannot be read.
    """
    predictor = load_adapter(folder, device, backbone)
    result: dict[str, Any] = {"purpose": PURPOSE, "adapter": str(folder), "task": predictor.task, "split": split}
    if isinstance(predictor, SegmentPredictor):
        chosen = select_split(masked(manifest), split)
        result |= {"threshold": predictor.threshold, "metrics": _segmentation(predictor, chosen)}
    else:
        column = predictor.metadata["training"]["label_column"]
        chosen = select_split(labelled(manifest, column), split)
        result |= {"classes": predictor.classes, "metrics": _classification(predictor, chosen, column, split)}
    return result | {
        "backbone": {"name": predictor.backbone.name, "fingerprint": predictor.backbone.fingerprint},
        "image_size": predictor.backbone.preprocessing.image_size,
        "images": chosen.fingerprint,
    }


def _segmentation(predictor: SegmentPredictor, manifest: Manifest) -> dict[str, Any]:
    overlaps = []
    with bar("evaluating", len(manifest)) as progress:
        for loaded in batches(manifest, predictor):
            maps = predictor.probability_maps(_pixels(loaded), [one.size for one in loaded])
            for one, probability in zip(loaded, maps, strict=True):
                overlaps.append(overlap(load_mask(manifest, one.index), probability >= predictor.threshold))
            progress.advance(len(loaded))
    return segmentation_metrics(overlaps)


def _classification(predictor: ClassifyPredictor, manifest: Manifest, column: str, split: str) -> dict[str, Any]:
    labels, names = class_indices(manifest, column, predictor.classes, split)
    rows = []
    with bar("evaluating", len(manifest)) as progress:
        for loaded in batches(manifest, predictor):
            rows.append(predictor.probability_rows(_pixels(loaded)))
            progress.advance(len(loaded))
    return classification_metrics(labels, widen(np.concatenate(rows), len(names)), names)


def _pixels(loaded: list[Loaded]) -> torch.Tensor:
    """The batch; an unreadable image ends an evaluation, since a mean over the others would hide it."""
    for one in loaded:
        if one.error is not None:
            raise DinomedError(f"{one.error}; it could be read when the manifest was made: scan the folder again")
    return torch.stack([one.pixels for one in loaded if one.pixels is not None])
