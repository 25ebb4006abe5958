"""Evaluation of depth estimators, at the size of each image."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dinomed.adapters.evaluated import EvaluatedValues
from dinomed.adapters.tasks.depth.fit import limits_of_metrics
from dinomed.adapters.tasks.depth.predict import DepthPredictor
from dinomed.datasets.manifest import Manifest
from dinomed.metrics.depth import depth_errors, depth_metrics
from dinomed.progress import track

HEADLINE = ("delta1", "abs_rel", "rmse")  # delta1 orders the cases: more is better


def compare_depths(predictor: DepthPredictor, manifest: Manifest) -> list[dict[str, float]]:
    """Compute `dinomed.metrics.depth.depth_errors` of each image of `manifest`, all of which have a depth map."""
    limits = limits_of_metrics(predictor.low, predictor.high)
    maps = track(predictor.manifest_maps(manifest), "evaluating", len(manifest))
    return [depth_errors(predictor.source.read(manifest, row), depth[0], *limits) for row, depth in enumerate(maps)]


def evaluate_depth(predictor: DepthPredictor, manifest: Manifest) -> EvaluatedValues:
    """Compare the predictions for `manifest` with its depth maps."""
    errors = compare_depths(predictor, manifest)
    limits = {"low": predictor.low, "high": predictor.high, "unit": predictor.source.unit}

    def summary(rows: Sequence[int]) -> dict[str, Any]:
        return depth_metrics([errors[i] for i in rows]) | limits

    columns = {name: np.array([image[name] for image in errors], float) for name in HEADLINE}
    return EvaluatedValues(manifest, manifest.units(), columns, summary, errors=("abs_rel", "rmse"), cases=errors)
