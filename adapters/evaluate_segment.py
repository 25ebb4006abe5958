"""Metrics of a segmenter: masks compared at each image's own size."""

from typing import Any

from dinomed.adapters.folders import batches, stack_pixels
from dinomed.adapters.masks import load_mask
from dinomed.adapters.predict import SegmentPredictor
from dinomed.datasets.manifest import Manifest
from dinomed.metrics.segmentation import overlap, segmentation_metrics
from dinomed.progress import bar


def measure_segmenter(predictor: SegmentPredictor, manifest: Manifest) -> dict[str, Any]:
    """Means over the images of `manifest`, all of which have a mask (`dinomed.metrics.segmentation`)."""
    overlaps = []
    with bar("evaluating", len(manifest)) as progress:
        for loaded in batches(manifest, predictor):
            maps = predictor.probability_maps(stack_pixels(loaded), [one.size for one in loaded])
            for one, probability in zip(loaded, maps, strict=True):
                overlaps.append(overlap(load_mask(manifest, one.index), probability >= predictor.threshold))
            progress.advance(len(loaded))
    return segmentation_metrics(overlaps)
