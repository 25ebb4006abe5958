"""Check whether an image is unlike the training images: k-NN distance of mean patch tokens.

The distance of an image is 1 minus its mean cosine similarity to the 5 nearest training images (Sun et al. 2022,
"Out-of-Distribution Detection with Deep Nearest Neighbors"). Distances of the training images are measured without
the images of their own group (patient, lesion or video). An image is unlike the training images if its distance is
larger than 99% of theirs.

The check is switched off if it is not reliable: with too few groups, or if the backbone does not distinguish training
images from the same images with inverted colours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError
from dinomed.features.compute import compute_features
from dinomed.features.finite import NotFiniteError
from dinomed.features.loading import load_batches
from dinomed.features.neighbors import normalised

NEIGHBORS, QUANTILE = 5, 0.99
MIN_GROUPS = 20  # a new image of the same kind is further away than all of 20 groups with probability 1/21, below 5%
MAX_VECTORS = 1000  # training images that are kept; with more, the limit changes by less than one percentile
NUM_CONTROLS, CONTROLS_DETECTED = 16, 0.9
_BLOCK = 256  # rows of a similarity matrix in memory


@dataclass(frozen=True)
class Familiarity:
    """How like the training images an image is.

    Attributes:
        distance: k-NN distance, 0 to 2.
        percentile: share of the training images whose distance is smaller, 0 to 100.
        unlike: the distance is above the 99th percentile.
    """

    distance: float
    percentile: float
    unlike: bool


@dataclass(frozen=True)
class TrainingReference:
    """Features of training images, and their distances from each other.

    Attributes:
        vectors: mean patch tokens of length 1, float16 (N, C).
        distances: of the same images, without their own group, float32 (N,), sorted.
        groups: number of different groups (patients, lesions, videos, or single images).
        block: block of the backbone whose tokens are compared.
        controls: share of the control images (inverted colours) that are above the limit, 0 to 1.
    """

    vectors: np.ndarray
    distances: np.ndarray
    groups: int
    block: int
    controls: float

    @property
    def problem(self) -> str | None:
        """The reason why the check is not available, or None."""
        if self.groups < MIN_GROUPS:
            return f"the training images have {self.groups} groups, and at least {MIN_GROUPS} are needed"
        if self.controls < CONTROLS_DETECTED:
            return (
                f"the backbone recognises only {self.controls:.0%} of images with inverted colours as unlike the "
                "training images"
            )
        return None

    @property
    def limit(self) -> float:
        """The distance above which an image is unlike the training images."""
        return float(np.quantile(self.distances, QUANTILE))

    def judge(self, means: np.ndarray) -> list[Familiarity]:
        """Compare images with the training images.

        Args:
            means: mean patch tokens (B, C) of `block`.
        """
        distances = knn_distances(normalised(means, "image"), self.vectors.astype(np.float32))
        ranks = np.searchsorted(self.distances, distances) / len(self.distances)
        limit = self.limit
        return [
            Familiarity(float(distance), 100 * float(rank), bool(distance > limit))
            for distance, rank in zip(distances, ranks, strict=True)
        ]

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the reference as tensors."""
        return {
            "vectors": torch.from_numpy(self.vectors),
            "distances": torch.from_numpy(self.distances),
            "counts": torch.tensor([self.groups, self.block]),
            "controls": torch.tensor([self.controls], dtype=torch.float32),
        }


def reference_from_tensors(tensors: Mapping[str, Tensor]) -> TrainingReference | None:
    """Return the reference from tensors: the inverse of `TrainingReference.to_tensors`; None if there are none.

    Raises:
        DinomedError: the tensors do not belong together.
    """
    if not tensors:
        return None
    try:
        vectors, distances = tensors["vectors"].numpy(), tensors["distances"].numpy()
        groups, block = tensors["counts"].tolist()
        (controls,) = tensors["controls"].tolist()
    except (KeyError, ValueError) as error:
        raise DinomedError(f"its features of training images are incomplete: {error}") from None
    fits = vectors.ndim == 2 and vectors.dtype == np.float16 and distances.shape == (len(vectors),)
    if not fits or not np.isfinite(distances).all() or not np.isfinite(vectors).all():
        raise DinomedError("its features of training images do not belong together")
    enough = len(vectors) >= MIN_GROUPS
    return TrainingReference(vectors, distances, groups if enough else min(groups, MIN_GROUPS - 1), block, controls)


def knn_distances(
    queries: np.ndarray,
    vectors: np.ndarray,
    query_units: Sequence[str] | None = None,
    units: Sequence[str] | None = None,
) -> np.ndarray:
    """Return 1 minus the mean similarity to the `NEIGHBORS` most similar vectors, float32 (Q,).

    Args:
        queries: float32 (Q, C) of length 1.
        vectors: float32 (N, C) of length 1, N at least `NEIGHBORS`.
        query_units: unit of each query; vectors of the same unit are left out.
        units: unit of each vector.
    """
    numbers: dict[str, int] = {}
    vector_numbers = np.array([numbers.setdefault(unit, len(numbers)) for unit in units or ()])
    query_numbers = np.array([numbers.get(unit, -1) for unit in query_units or ()])
    parts = []
    for start in range(0, len(queries), _BLOCK):
        similarities = queries[start : start + _BLOCK] @ vectors.T
        if len(vector_numbers):
            similarities[query_numbers[start : start + _BLOCK, None] == vector_numbers[None]] = -1
        parts.append(1 - np.partition(similarities, -NEIGHBORS, axis=1)[:, -NEIGHBORS:].mean(axis=1))
    return np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)


def choose_reference_rows(count: int) -> list[int]:
    """Return at most `MAX_VECTORS` evenly spaced rows of `count`."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_VECTORS)).round().astype(int)).tolist()


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
        empty = np.zeros((0, means.shape[1]), np.float16)
        return TrainingReference(empty, np.zeros(0, np.float32), groups, block, 0.0)
    vectors = normalised(means, "image").astype(np.float16)
    wide = vectors.astype(np.float32)
    distances = np.sort(knn_distances(wide, wide, units, units))
    reference = TrainingReference(vectors, distances, groups, block, 0.0)
    controls = reference.judge(control_features(backbone, manifest, block))
    detected = sum(control.unlike for control in controls) / max(len(controls), 1)
    return TrainingReference(vectors, distances, groups, block, detected)


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
