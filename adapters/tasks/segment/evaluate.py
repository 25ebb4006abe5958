"""Metrics of a segmenter: masks compared at each image's own size, class by class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinomed.adapters.evaluation.report import JudgedValues
from dinomed.adapters.inference.loader import SegmentPredictor
from dinomed.datasets.manifest import Manifest
from dinomed.features.loading import load_batches, stack_pixels
from dinomed.metrics.lesions import LesionCounts, count_lesions, lesion_metrics
from dinomed.metrics.segmentation import Overlap, overlap, segmentation_metrics
from dinomed.progress import bar


@dataclass(frozen=True)
class ClassComparison:
    """One class of one image: overlap of the masks, and its lesions."""

    overlap: Overlap
    lesions: LesionCounts


def compare_masks(predictor: SegmentPredictor, manifest: Manifest) -> dict[str, list[ClassComparison]]:
    """Of each class (but the background), the images of `manifest` in their order; all of them have masks."""
    schema = predictor.schema
    found: dict[str, list[ClassComparison]] = {schema.names[k]: [] for k in schema.reported}
    with bar("evaluating", len(manifest)) as progress:
        for loaded in load_batches(manifest, predictor.preprocessing, predictor.batch_size):
            maps = predictor.batch_maps(stack_pixels(loaded), [one.size for one in loaded])
            for one, probabilities in zip(loaded, maps, strict=True):
                targets = schema.planes(schema.read(manifest, one.index))
                guess = schema.planes(predictor.decide(probabilities))
                for k in schema.reported:
                    pair = ClassComparison(overlap(targets[k], guess[k]), count_lesions(targets[k], guess[k]))
                    found[schema.names[k]].append(pair)
            progress.advance(len(loaded))
    return found


def measure_segmenter(predictor: SegmentPredictor, manifest: Manifest) -> dict[str, Any]:
    """`dinomed.metrics.segmentation` over the images of `manifest`; of several classes the means over them, and
    `per_class`."""
    compared = compare_masks(predictor, manifest)
    per_class = {name: segmentation_metrics([one.overlap for one in cases]) for name, cases in compared.items()}
    return mean_over_classes(per_class)


def judge_segmenter(predictor: SegmentPredictor, manifest: Manifest) -> JudgedValues:
    """The images of `manifest` with their overlaps (of several classes, their means), for a report; its metrics have
    the counts of `dinomed.metrics.lesions` too, as `lesions`."""
    compared = compare_masks(predictor, manifest)

    def summary(rows: Sequence[int]) -> dict[str, Any]:
        chosen = {name: [cases[i] for i in rows] for name, cases in compared.items()}
        per_class = {name: segmentation_metrics([one.overlap for one in cases]) for name, cases in chosen.items()}
        lesions = {name: lesion_metrics([one.lesions for one in cases]) for name, cases in chosen.items()}
        return mean_over_classes(per_class) | {"lesions": lesions if len(lesions) > 1 else next(iter(lesions.values()))}

    columns = {}
    for name in ("dice", "iou", "surface_dice", "hd95_px"):
        values = np.array([[getattr(one.overlap, name) for one in cases] for cases in compared.values()], float)
        known = ~np.isnan(values)
        total, count = np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0)
        columns[name] = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return JudgedValues(manifest, manifest.units(), columns, summary)


def mean_over_classes(per_class: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The metrics of the one class, or the means over the classes where they are defined, with `n` and `per_class`."""
    first = next(iter(per_class.values()))
    if len(per_class) == 1:
        return first
    means = {
        key: _mean([row[key] for row in per_class.values()]) for key, value in first.items() if isinstance(value, float)
    }
    return {"n": first["n"], **means, "per_class": per_class}


def _mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
