"""Evaluation of segmenters: masks compared at the size of each image, class by class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinomed.adapters.tasks.areas import PixelAreas
from dinomed.adapters.tasks.segment.evaluated import EvaluatedMasks
from dinomed.adapters.tasks.segment.predict import SegmentPredictor
from dinomed.adapters.tasks.volume_metrics import CaseValues, VolumeComparison, video_values
from dinomed.datasets.manifest import Manifest
from dinomed.metrics.lesions import LesionCounts, count_lesions, lesion_metrics
from dinomed.metrics.ratios import defined_mean, row_means
from dinomed.metrics.segmentation import DiceByThreshold, Overlap, overlap, segmentation_metrics
from dinomed.progress import track

CONFIDENCE = "Dice expected by the probabilities"
"""Name of the confidence of a mask: 1 minus `mask_uncertainty`."""
THRESHOLDS = tuple(step / 20 for step in range(1, 20))
"""Thresholds of the curve of Dice, 0.05 to 0.95."""


@dataclass(frozen=True)
class ClassComparison:
    """The comparison of one class in one image: overlap of the masks, lesions, and the areas of the reference and the
    predicted mask in mm², None if not known."""

    overlap: Overlap
    lesions: LesionCounts
    areas_mm2: tuple[float, float] | None = None


@dataclass(frozen=True)
class MaskComparison:
    """The comparison of all images.

    Attributes:
        by_class: reported class to one comparison for each image.
        target_shares: share of each image in its reference mask (of any class), 0 to 1.
        by_threshold: Dice at every threshold; None for several classes.
        confidences: confidence of the mask of each image, 0 to 1.
        by_volume: Dice and HD95 of the volumes whose slices the images are; None if they are no slices.
    """

    by_class: dict[str, list[ClassComparison]]
    target_shares: list[float]
    by_threshold: DiceByThreshold | None
    confidences: list[float]
    by_volume: CaseValues | None


def compare_masks(predictor: SegmentPredictor, manifest: Manifest) -> MaskComparison:
    """Compare predicted masks with the targets of `manifest`."""
    confidences: list[float] = []
    schema = predictor.schema
    by_threshold = DiceByThreshold(THRESHOLDS) if len(schema.names) == 1 else None
    shares: list[float] = []
    comparisons: dict[str, list[ClassComparison]] = {schema.names[k]: [] for k in schema.reported}
    volumes, reported = VolumeComparison(manifest, list(comparisons)), list(schema.reported)
    areas = PixelAreas(manifest)
    for row, probabilities in enumerate(track(predictor.manifest_maps(manifest), "evaluating", len(manifest))):
        confidences.append(predictor.confidence(probabilities))
        values = schema.read(manifest, row)
        targets = schema.planes(values)
        shares.append(float(schema.any_class(values).mean()))
        if by_threshold is not None:
            by_threshold.add(targets[0], probabilities[0])
        predicted = schema.planes(predictor.decide(probabilities))
        volumes.add(row, targets[reported], predicted[reported])
        for k in schema.reported:
            lesions = count_lesions(targets[k], predicted[k])
            both = areas.compare(row, targets[k], predicted[k])
            comparisons[schema.names[k]].append(ClassComparison(overlap(targets[k], predicted[k]), lesions, both))
    return MaskComparison(comparisons, shares, by_threshold, confidences, volumes.result())


def evaluate_segmenter(predictor: SegmentPredictor, manifest: Manifest) -> EvaluatedMasks:
    """Compare the predictions for `manifest` with its masks. The metrics also hold `lesions`, the counts of
    `dinomed.metrics.lesions`. For several classes the values of an image are means over the classes."""
    comparison = compare_masks(predictor, manifest)
    compared = comparison.by_class
    images = [dict(zip(compared, cases, strict=True)) for cases in zip(*compared.values(), strict=True)]
    columns = {}
    for name in ("dice", "iou", "surface_dice", "hd95_px"):
        values = np.array([[getattr(case.overlap, name) for case in cases] for cases in compared.values()], float)
        columns[name] = row_means(values.T)
    curve = comparison.by_threshold
    overlaps = {
        name: np.array([(case.overlap.dice, case.overlap.hd95_px) for case in cases])
        for name, cases in compared.items()
    }
    by_kind = comparison.by_volume, video_values(manifest, overlaps)
    return EvaluatedMasks(
        manifest,
        manifest.units(),
        columns,
        lambda rows: summarize_masks([images[row] for row in rows], list(compared)),
        errors=("hd95_px",),
        confidences={CONFIDENCE: np.array(comparison.confidences)},
        abstention=predictor.abstention,
        cases=images,
        target_shares=np.array(comparison.target_shares),
        by_threshold=None if curve is None else list(zip(THRESHOLDS, curve.dice.tolist(), strict=True)),
        cases_by_kind=[cases for cases in by_kind if cases is not None],
        areas_mm2={name: [case.areas_mm2 for case in cases] for name, cases in compared.items()},
    )


def summarize_masks(images: Sequence[Mapping[str, ClassComparison]], classes: Sequence[str]) -> dict[str, Any]:
    """Return the metrics of images, each of which has a comparison for each of the reported classes."""
    by_class = {name: [image[name] for image in images] for name in classes}
    per_class = {name: segmentation_metrics([case.overlap for case in cases]) for name, cases in by_class.items()}
    lesions = {name: lesion_metrics([case.lesions for case in cases]) for name, cases in by_class.items()}
    return mean_over_classes(per_class) | {"lesions": lesions if len(lesions) > 1 else next(iter(lesions.values()))}


def mean_over_classes(per_class: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the metrics of a single class; for several, their means where defined, with `n` and `per_class`."""
    first = next(iter(per_class.values()))
    if len(per_class) == 1:
        return first
    means = {
        key: defined_mean([row[key] for row in per_class.values()])
        for key, value in first.items()
        if isinstance(value, float)
    }
    return {"n": first["n"], **means, "per_class": per_class}
