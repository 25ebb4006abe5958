"""Scores of images unlike the training images on real shifts: AUROC of each score, and the share above its limit.

    python benchmarks/features/shifts.py --backbone runs/ssl --reference DERMOSCOPY [--group lesion_id]
        [--shifted NAME=FOLDER ...] [--leave-one-out COLUMN] [--images 400] [--image-size 64] [--seed 0]

`--reference` is a folder with labels.csv. Images of one kind are its own, each scored without its own group: 5 folds by
group. Images of another kind are those of the folders `--shifted`, scored by all images of the reference; or, with
`--leave-one-out`, those of one value of a column (such as a centre), scored by the images of the other values.

| score | distance of an image |
|---|---|
| k-NN | 1 minus the mean cosine similarity to the 5 nearest (Sun et al. 2022); the check of dinomed |
| Mahalanobis | to the mean of the reference, covariance of Ledoit and Wolf (Lee et al. 2018, without classes) |

Both are computed on mean patch tokens and on class tokens. *marked* is the share of images above the 99th percentile of
the images of one kind. Intervals are of a bootstrap over groups. The results are printed as JSON.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.scan.scan import scan
from dinomed.features.compute import compute_features
from dinomed.features.familiarity import QUANTILE, knn_distances
from dinomed.features.loading import load_batches, stack_pixels
from dinomed.features.neighbors import normalised

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]  # vectors of the reference, vectors -> distances
FOLDS, DRAWS = 5, 500


def knn(reference: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return knn_distances(normalised(vectors, "image"), normalised(reference, "image"))


def mahalanobis(reference: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return np.asarray(LedoitWolf().fit(reference).mahalanobis(vectors))


SCORES: dict[str, Score] = {"k-NN": knn, "Mahalanobis": mahalanobis}


def sample(manifest: Manifest, count: int, rng: np.random.Generator) -> Manifest:
    """Return at most `count` images, drawn at random."""
    return manifest.take(sorted(rng.permutation(len(manifest))[:count].tolist()))


@torch.inference_mode()
def tokens(backbone: FrozenBackbone, manifest: Manifest) -> dict[str, np.ndarray]:
    """Return mean patch tokens and class tokens of the last block, each (N, C)."""
    parts: dict[str, list[np.ndarray]] = {"mean patch token": [], "class token": []}
    for batch in load_batches(manifest, backbone.preprocessing):
        assert all(image.error is None for image in batch), "scanned images can be read"
        features = compute_features(backbone, stack_pixels(batch), (-1,), False)
        parts["mean patch token"].append(features.mean.float().numpy())
        parts["class token"].append(features.cls.float().numpy())
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def distances_without_group(vectors: np.ndarray, groups: np.ndarray, score: Score) -> np.ndarray:
    """Return the distance of each image to the images of other folds; a group is in one fold."""
    distances = np.zeros(len(vectors))
    for others, fold in GroupKFold(FOLDS).split(vectors, groups=groups):
        distances[fold] = score(vectors[others], vectors[fold])
    return distances


def draw(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the rows of groups that are drawn with replacement."""
    names = np.unique(groups)
    return np.concatenate([np.flatnonzero(groups == name) for name in rng.choice(names, len(names))])


def auroc(near: np.ndarray, far: np.ndarray) -> float:
    """Return the probability that an image of another kind has the larger distance."""
    return float(roc_auc_score(np.repeat([0, 1], [len(near), len(far)]), np.concatenate([near, far])))


def compare(
    same: dict[str, np.ndarray], other: dict[str, np.ndarray], groups: np.ndarray, other_groups: np.ndarray
) -> dict[str, Any]:
    """Return the results of each token and score."""
    results: dict[str, Any] = {}
    for token, vectors in same.items():
        for name, score in SCORES.items():
            near, far = distances_without_group(vectors, groups, score), score(vectors, other[token])

            rng = np.random.default_rng(0)
            draws = [auroc(near[draw(groups, rng)], far[draw(other_groups, rng)]) for _ in range(DRAWS)]
            low, high = np.quantile(draws, (0.025, 0.975))
            results[f"{name}, {token}"] = {
                "auroc": round(auroc(near, far), 3),
                "interval": [round(float(low), 3), round(float(high), 3)],
                "marked": round(float((far > np.quantile(near, QUANTILE)).mean()), 3),
            }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--group", help="column of groups of the reference")
    parser.add_argument("--shifted", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--leave-one-out", metavar="COLUMN")
    parser.add_argument("--images", type=int, default=400, help="of each folder at most")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    rng = np.random.default_rng(arguments.seed)
    backbone = load_backbone(arguments.backbone, image_size=arguments.image_size)
    column = arguments.leave_one_out
    keep = [column] if column else []
    manifest = scan(Path(arguments.reference), labels="labels.csv", group=arguments.group, keep=keep).manifest
    manifest = sample(manifest, arguments.images, rng)
    vectors, groups = tokens(backbone, manifest), np.array(manifest.units())
    results: dict[str, Any] = {"images": len(manifest)}
    for entry in arguments.shifted:
        name, folder = entry.split("=", 1)
        other = sample(scan(Path(folder)).manifest, arguments.images, rng)
        results[name] = compare(vectors, tokens(backbone, other), groups, np.array(other.units()))
    if column:
        values = np.array(manifest.column(column))
        for value in np.unique(values):
            inside = values == value
            same, other_tokens = ({name: array[rows] for name, array in vectors.items()} for rows in (~inside, inside))
            results[f"{column} {value}"] = compare(same, other_tokens, groups[~inside], groups[inside])
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
