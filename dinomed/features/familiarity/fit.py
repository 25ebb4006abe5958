"""Fit of the check of unlike images: the distance, held-out distances of training images, and control images.

The check is switched off if it is not reliable: with too few groups, or if the backbone does not distinguish training
images from the same images with inverted colours.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.features.compute import compute_features
from dinomed.features.familiarity.distances import (
    MIN_SCALE,
    CombinedDistance,
    FitDistance,
    fit_mahalanobis,
    fit_neighbors,
)
from dinomed.features.familiarity.reference import MAX_IMAGES, MIN_GROUPS, TrainingReference, upper_limit
from dinomed.features.finite import NotFiniteError
from dinomed.features.loading import load_batches

FOLDS = 10
NUM_CONTROLS = 16


def choose_reference_rows(count: int) -> list[int]:
    """Return at most `MAX_IMAGES` evenly spaced rows of `count`."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_IMAGES)).round().astype(int)).tolist()


def fit_reference(
    means: np.ndarray, units: Sequence[str], backbone: FrozenBackbone, manifest: Manifest, block: int = -1
) -> TrainingReference:
    """Measure how far training images are from each other, and test the check with control images.

    Args:
        means: mean patch tokens (N, C) of `block`.
        units: unit of each image, as `Manifest.units` returns them.
        backbone: the backbone of these features.
        manifest: the images, N rows.
        block: block of the backbone.
    """
    groups = len(set(units))
    if groups < MIN_GROUPS:
        return TrainingReference(None, np.zeros(0), groups, block, 0.0)
    distance, held_out = fit_distance(means, units)
    reference = TrainingReference(distance, held_out, groups, block, 0.0)
    controls = reference.judge(control_features(backbone, manifest, block))
    return replace(reference, controls=sum(control.unlike for control in controls) / max(len(controls), 1))


def fit_distance(means: np.ndarray, units: Sequence[str]) -> tuple[CombinedDistance, np.ndarray]:
    """Fit the distance to all images. Return it, and the distances of the images from those of other groups, float64
    (N,), sorted. The arguments are those of `held_out_distances`."""
    parts = [held_out_distances(means, units, fit) for fit in (fit_neighbors, fit_mahalanobis)]
    scales = np.array([max(upper_limit(np.sort(part)), MIN_SCALE) for part in parts])
    held_out = np.maximum(*(part / scale for part, scale in zip(parts, scales, strict=True)))
    return CombinedDistance(fit_neighbors(means), fit_mahalanobis(means), scales), np.sort(held_out)


def held_out_distances(means: np.ndarray, units: Sequence[str], fit: FitDistance) -> np.ndarray:
    """Return the distance of each image by a fit to images of other groups, float64 (N,).

    Args:
        means: mean patch tokens (N, C).
        units: unit of each image, at least `FOLDS` different ones; a unit is in one of `FOLDS` folds.
        fit: `fit_mahalanobis` or `fit_neighbors`.
    """
    from sklearn.model_selection import GroupKFold

    held_out = np.zeros(len(means))
    for train, fold in GroupKFold(FOLDS).split(means, groups=np.array(units)):
        held_out[fold] = fit(means[train]).measure(means[fold])
    return held_out


@torch.inference_mode()
def control_features(backbone: FrozenBackbone, manifest: Manifest, block: int = -1) -> np.ndarray:
    """Return mean patch tokens (M, C) of `NUM_CONTROLS` images of a manifest with inverted colours.

    They have the shapes and textures of the training images, so a backbone that does not distinguish them would
    not recognise another modality either. Images without finite features are left out.
    """
    preprocessing = backbone.preprocessing
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    rows = np.unique(np.linspace(0, len(manifest) - 1, NUM_CONTROLS).round().astype(int))
    means = [np.zeros((0, backbone.embed_dim), np.float32)]
    for batch in load_batches(manifest.take(rows.tolist()), preprocessing):
        for image in batch:
            if image.pixels is None:
                continue
            place = (slice(None), *preprocessing.box(image.size).slices)
            inverted = image.pixels.clone()  # padding keeps its colour
            # 1 - x of the values x before the normalisation
            inverted[place] = (1 - 2 * mean) / std - image.pixels[place]
            try:
                features = compute_features(backbone, inverted[None], (block,), False)
            except NotFiniteError:
                continue
            means.append(features.mean.float().cpu().numpy())
    return np.concatenate(means)
