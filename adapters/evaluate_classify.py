"""Metrics of a classifier."""

from typing import Any

import numpy as np

from dinomed.adapters.data import class_indices, widen
from dinomed.adapters.folders import batches, stack_pixels
from dinomed.adapters.predict import ClassifyPredictor
from dinomed.datasets.manifest import Manifest
from dinomed.metrics.classification import classification_metrics
from dinomed.progress import bar


def measure_classifier(predictor: ClassifyPredictor, manifest: Manifest, column: str, split: str) -> dict[str, Any]:
    """`dinomed.metrics.classification` over the images of `manifest`, all of which have a label in `column`."""
    labels, names = class_indices(manifest, column, predictor.classes, split)
    rows = []
    with bar("evaluating", len(manifest)) as progress:
        for loaded in batches(manifest, predictor):
            rows.append(predictor.probability_rows(stack_pixels(loaded)))
            progress.advance(len(loaded))
    return classification_metrics(labels, widen(np.concatenate(rows), len(names)), names)
