"""Metrics of a depth estimator, at each image's own size."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dinomed.adapters.evaluation.report import JudgedValues
from dinomed.adapters.inference.loader import DepthPredictor
from dinomed.adapters.tasks.depth.fit import limits_of_metrics
from dinomed.datasets.manifest import Manifest
from dinomed.features.loading import load_batches, stack_pixels
from dinomed.metrics.depth import depth_errors, depth_metrics
from dinomed.progress import bar

HEADLINE = ("delta1", "abs_rel", "rmse")  # the first orders the cases: more is better


def compare_depths(predictor: DepthPredictor, manifest: Manifest) -> list[dict[str, float]]:
    """`dinomed.metrics.depth.depth_errors` of each image of `manifest`, all of which have a depth map."""
    limits = limits_of_metrics(predictor.low, predictor.high)
    found = []
    with bar("evaluating", len(manifest)) as progress:
        for loaded in load_batches(manifest, predictor.preprocessing, predictor.batch_size):
            maps = predictor.batch_maps(stack_pixels(loaded), [one.size for one in loaded])
            for one, depth in zip(loaded, maps, strict=True):
                found.append(depth_errors(predictor.source.read(manifest, one.index), depth[0], *limits))
            progress.advance(len(loaded))
    return found


def judge_depth(predictor: DepthPredictor, manifest: Manifest) -> JudgedValues:
    """The images of `manifest` with their errors, for a report."""
    errors = compare_depths(predictor, manifest)
    known = {"low": predictor.low, "high": predictor.high, "unit": predictor.source.unit}

    def summary(rows: Sequence[int]) -> dict[str, Any]:
        return depth_metrics([errors[i] for i in rows]) | known

    columns = {name: np.array([one[name] for one in errors], float) for name in HEADLINE}
    return JudgedValues(manifest, manifest.units(), columns, summary)
