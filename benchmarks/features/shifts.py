"""Scores of images unlike the training images on real shifts: AUROC of each score, and the share above its limit.

    python benchmarks/features/shifts.py --backbone runs/ssl --reference DERMOSCOPY [--group lesion_id]
        [--shifted NAME=FOLDER ...] [--leave-one-out COLUMN] [--sizes 80 160 ...] [--all-blocks] [--images 400]
        [--image-size 64] [--seed 0]

`--reference` is a folder with labels.csv. Images of one kind are its own, each scored without its own group, as the
check does. Images of another kind are those of the folders `--shifted`, scored by all images of the reference; or, with
`--leave-one-out`, those of one value of a column (such as a centre), scored by the images of the other values.

| score | distance of an image |
|---|---|
| k-NN | 1 minus the mean cosine similarity to the 5 nearest (Sun et al. 2022) |
| Mahalanobis | to the mean of the reference, covariance of Ledoit and Wolf (Lee et al. 2018, without classes) |
| combined | the larger one, each divided by its limit; the check of dinomed |

All are computed on mean patch tokens and on class tokens. *marked* is the share of images above the limit of the
check.
Intervals are of a bootstrap over groups. The results are printed as JSON.

With `--sizes` the reference has so many images, whole groups drawn at random 5 times; its other images are those of one
kind. The results are means over the draws. With `--all-blocks` the mean patch tokens of all blocks are concatenated, as
the features of a larger backbone have more values.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.scan.scan import scan
from dinomed.features.compute import compute_features
from dinomed.features.familiarity.distances import Distance, FitDistance, fit_mahalanobis, fit_neighbors
from dinomed.features.familiarity.fit import fit_distance, held_out_distances
from dinomed.features.familiarity.reference import upper_limit
from dinomed.features.loading import load_batches, stack_pixels

SCORES: dict[str, FitDistance] = {"k-NN": fit_neighbors, "Mahalanobis": fit_mahalanobis}
RESAMPLES, SUBSETS = 500, 5


def sample(manifest: Manifest, count: int, rng: np.random.Generator) -> Manifest:
    """Return at most `count` images, drawn at random."""
    return manifest.take(sorted(rng.permutation(len(manifest))[:count].tolist()))


@torch.inference_mode()
def tokens(backbone: FrozenBackbone, manifest: Manifest, blocks: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return mean patch tokens and class tokens of `blocks`, concatenated, each (N, blocks * C)."""
    parts: dict[str, list[np.ndarray]] = {"mean patch token": [], "class token": []}
    for batch in load_batches(manifest, backbone.preprocessing):
        assert all(image.error is None for image in batch), "scanned images can be read"
        features = compute_features(backbone, stack_pixels(batch), blocks, False)
        parts["mean patch token"].append(features.mean.float().numpy())
        parts["class token"].append(features.cls.float().numpy())
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def fit_all(vectors: np.ndarray, groups: np.ndarray) -> dict[str, tuple[Distance, np.ndarray]]:
    """Return each distance, fitted to all images, and the distances of these from images of other groups (N,)."""
    units = groups.tolist()
    fitted: dict[str, tuple[Distance, np.ndarray]] = {
        name: (fit(vectors), held_out_distances(vectors, units, fit)) for name, fit in SCORES.items()
    }
    combined, _ = fit_distance(vectors, units)
    parts = [held_out / scale for (_, held_out), scale in zip(fitted.values(), combined.scales, strict=True)]
    return fitted | {"combined": (combined, np.maximum(*parts))}


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
        for name, (distance, near) in fit_all(vectors, groups).items():
            far = distance.measure(other[token])
            rng = np.random.default_rng(0)
            draws = [auroc(near[draw(groups, rng)], far[draw(other_groups, rng)]) for _ in range(RESAMPLES)]
            low, high = np.quantile(draws, (0.025, 0.975))
            results[f"{name}, {token}"] = {
                "auroc": round(auroc(near, far), 3),
                "interval": [round(float(low), 3), round(float(high), 3)],
                "marked": round(float((far > upper_limit(np.sort(near))).mean()), 3),
            }
    return results


def compare_sizes(
    vectors: np.ndarray, groups: np.ndarray, shifted: dict[str, np.ndarray], sizes: list[int]
) -> dict[str, Any]:
    """Return the results of each score for references of some sizes, means over `SUBSETS` draws."""
    results: dict[str, Any] = {}
    if sizes and max(sizes) >= len(vectors):
        raise SystemExit(f"--sizes: the reference has {len(vectors)} images, of which some must be left to test")
    for size in sizes:
        draws: dict[str, list[dict[str, float]]] = {}
        for seed in range(SUBSETS):
            ranks = np.random.default_rng(seed).permutation(len(np.unique(groups)))
            order = np.argsort(ranks[np.unique(groups, return_inverse=True)[1]], kind="stable")
            chosen = order[:size]
            unused = order[~np.isin(groups[order], groups[chosen])]
            for name, (distance, held_out) in fit_all(vectors[chosen], groups[chosen]).items():
                near, limit = distance.measure(vectors[unused]), upper_limit(np.sort(held_out))
                row = {"marked of the same kind": float((near > limit).mean())}
                for kind, far_vectors in shifted.items():
                    far = distance.measure(far_vectors)
                    row |= {f"auroc {kind}": auroc(near, far), f"marked {kind}": float((far > limit).mean())}
                draws.setdefault(name, []).append(row)
        for name, rows in draws.items():
            means = {key: round(float(np.mean([row[key] for row in rows])), 3) for key in rows[0]}
            results[f"{size} images of {vectors.shape[1]} values, {name}"] = means
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--group", help="column of groups of the reference")
    parser.add_argument("--shifted", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--leave-one-out", metavar="COLUMN")
    parser.add_argument("--sizes", type=int, nargs="*", default=[], metavar="N")
    parser.add_argument("--all-blocks", action="store_true")
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
    blocks = tuple(range(backbone.depth)) if arguments.all_blocks else (-1,)
    vectors, groups = tokens(backbone, manifest, blocks), np.array(manifest.units())
    results: dict[str, Any] = {"images": len(manifest)}
    shifted: dict[str, np.ndarray] = {}
    for entry in arguments.shifted:
        name, folder = entry.split("=", 1)
        other = sample(scan(Path(folder)).manifest, arguments.images, rng)
        others = tokens(backbone, other, blocks)
        shifted[name] = others["mean patch token"]
        if not arguments.sizes:
            results[name] = compare(vectors, others, groups, np.array(other.units()))
    results |= compare_sizes(vectors["mean patch token"], groups, shifted, arguments.sizes)
    if column:
        values = np.array(manifest.column(column))
        for value in np.unique(values):
            inside = values == value
            same, other_tokens = ({name: array[rows] for name, array in vectors.items()} for rows in (~inside, inside))
            results[f"{column} {value}"] = compare(same, other_tokens, groups[~inside], groups[inside])
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
