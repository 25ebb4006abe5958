"""Proportions of images: features of squashed, padded and rectangular images compared on real data.

    python benchmarks/features/aspect.py --backbone runs/ssl --dermoscopy FOLDER --polyps FOLDER [--size 224]
        [--images 1200] [--seeds 3]

| setting | an image becomes |
|---|---|
| square | a square of `size` px; proportions change |
| pad | its longer side `size` px, padded to a square |
| pad, larger | the same with a larger square, so that the image has about as many patches as with square |
| keep | a rectangle of whole patches with about the area of the square (`aspect=keep`: with its shorter side) |

Dermoscopy: k-NN (k = 20, cosine) and logistic regression on class token and mean patch token, out of fold with 4
folds by group, macro AUROC. Polyps: logistic regression on patch tokens, out of fold by group, mean Dice at the size of
the image at a threshold of 0.5. Each seed draws other folds. The interval of a difference to square is of a bootstrap
over groups. The results are printed as JSON.
"""

import argparse
import json
import warnings
from collections.abc import Sequence
from math import sqrt
from typing import Any

import cv2
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from dinomed.adapters.fitting.build import at_image_size
from dinomed.adapters.tasks.segment.mask_schema import BINARY
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.backbones.preprocessing import content_box, pad_to_input
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.scan.scan import scan
from dinomed.features.compute import Features, compute_features

SETTINGS = ("square", "pad", "pad, larger", "keep")
FOLDS, NEIGHBORS, DRAWS = 4, 20, 500


class Preparation:
    """One of `SETTINGS`: an image to pixels, a mask to the patches, and logits of patches back to the image."""

    def __init__(self, setting: str, backbone: FrozenBackbone, size: int, ratio: float) -> None:
        patch = backbone.patch_size
        if setting == "pad, larger":
            size = round(size * sqrt(ratio) / patch) * patch
        aspect = "pad" if setting.startswith("pad") else "square"
        self.setting, self.backbone = setting, at_image_size(backbone, size, aspect)

    def features(self, image: np.ndarray) -> Features:
        pixels = self._rectangle(image) if self.setting == "keep" else self.backbone.preprocessing(image)
        return compute_features(self.backbone, pixels[None], (-1,), True)

    def _rectangle(self, image: np.ndarray) -> Tensor:
        rows, columns = self.grid((image.shape[0], image.shape[1]))
        patch, pixels = self.backbone.patch_size, torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        size, bicubic = [rows * patch, columns * patch], InterpolationMode.BICUBIC
        return self.backbone.preprocessing.normalise(resize(pixels, size, interpolation=bicubic, antialias=True))

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of patches of an image of this height and width."""
        rows, columns = self.backbone.grid()
        if self.setting == "keep":
            stretch = sqrt(size[0] / size[1])
            return max(1, round(rows * stretch)), max(1, round(columns / stretch))
        return rows, columns

    def patch_targets(self, mask: np.ndarray) -> np.ndarray:
        """Return 1 where at least half of a patch is in the mask, -1 outside the image, else 0; float (patches,)."""
        rows, columns = self.grid((mask.shape[0], mask.shape[1]))
        side, patch = self.backbone.preprocessing.image_size, self.backbone.patch_size
        if self.setting == "keep":
            share = cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
            return (share >= 0.5).astype(int).ravel()
        box = content_box(mask.shape, side, self.backbone.preprocessing.aspect)
        content = cv2.resize(mask.astype(np.float32), (box.width, box.height), interpolation=cv2.INTER_AREA)
        inside = pad_to_input(np.ones_like(content), box, (side, side), 0)
        shares = [
            values.reshape(rows, patch, columns, patch).mean(axis=(1, 3))
            for values in (pad_to_input(content, box, (side, side), 0), inside)
        ]
        return np.where(shares[1] < 0.5, -1, (shares[0] >= 0.5).astype(int)).ravel()

    def image_logits(self, logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return logits (height, width) of logits of all patches (patches,)."""
        maps = torch.from_numpy(logits.reshape(self.grid(size)))[None, None].float()
        preprocessing = self.backbone.preprocessing.squashed if self.setting == "keep" else self.backbone.preprocessing
        return preprocessing.from_input(maps, size)[0, 0].numpy()


def groups_of(manifest: Manifest) -> np.ndarray:
    return np.unique(manifest.units(), return_inverse=True)[1]


def classification_scores(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities out of fold of logistic regression and of k-NN, each (N, classes)."""
    models = (
        make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300)),
        KNeighborsClassifier(NEIGHBORS, metric="cosine", weights="distance"),
    )
    scores = [np.zeros((len(labels), labels.max() + 1)) for _ in models]
    for train, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(features, labels, groups):
        for model, values in zip(models, scores, strict=True):
            values[test] = model.fit(features[train], labels[train]).predict_proba(features[test])
    return scores[0], scores[1]


def macro_auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    present = [k for k in range(scores.shape[1]) if 0 < (labels == k).sum() < len(labels)]
    return float(np.mean([roc_auc_score(labels == k, scores[:, k]) for k in present]))


def interval(values: Sequence[float]) -> list[float]:
    return [round(float(value), 4) for value in np.quantile(np.array(values), (0.025, 0.975))]


def draws_of_groups(groups: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each bootstrap draw of groups."""
    rng, members = np.random.default_rng(0), [np.flatnonzero(groups == k) for k in range(groups.max() + 1)]
    return [np.concatenate([members[k] for k in rng.integers(len(members), size=len(members))]) for _ in range(DRAWS)]


def compare_classification(backbone: FrozenBackbone, folder: str, size: int, count: int, seeds: int) -> dict[str, Any]:
    manifest = scan(folder, labels="labels.csv", group="lesion_id").manifest
    rows = np.random.default_rng(0).permutation(len(manifest))[:count]
    manifest = manifest.take(sorted(rows.tolist()))
    labels, groups = np.unique(manifest.column("label"), return_inverse=True)[1], groups_of(manifest)
    results: dict[str, Any] = {}
    scores: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for setting in SETTINGS:
        preparation = Preparation(setting, backbone, size, 4 / 3)
        vectors = []
        for row in range(len(manifest)):
            computed = preparation.features(backbone.preprocessing.read_row(manifest, row))
            vectors.append(torch.cat([computed.cls, computed.mean], dim=1)[0].numpy())
        scores[setting] = [classification_scores(np.stack(vectors), labels, groups, seed) for seed in range(seeds)]
    draws = draws_of_groups(groups)
    for setting, runs in scores.items():
        for place, name in enumerate(("logistic", "knn")):
            values = [macro_auroc(labels, run[place]) for run in runs]
            apart = [
                macro_auroc(labels[rows], runs[0][place][rows])
                - macro_auroc(labels[rows], scores["square"][0][place][rows])
                for rows in draws
            ]
            results[f"{setting}: {name}"] = {
                "auroc": round(float(np.mean(values)), 4), "seeds": [round(value, 4) for value in values],
                "difference": interval(apart),
            }  # fmt: skip
    return results


def compare_segmentation(backbone: FrozenBackbone, folder: str, size: int, seeds: int) -> dict[str, Any]:
    manifest = BINARY.usable(scan(folder, labels="labels.csv").manifest)
    groups, masks = groups_of(manifest), [BINARY.read(manifest, row)[0] for row in range(len(manifest))]
    ratio = float(np.median([max(mask.shape) / min(mask.shape) for mask in masks]))
    dices: dict[str, np.ndarray] = {}
    for setting in SETTINGS:
        preparation = Preparation(setting, backbone, size, ratio)
        tokens = []
        for row in range(len(manifest)):
            patches = preparation.features(backbone.preprocessing.read_row(manifest, row)).patches
            assert patches is not None
            tokens.append(patches[0].flatten(1).T.numpy())
        targets = [preparation.patch_targets(mask) for mask in masks]
        dices[setting] = np.zeros((seeds, len(masks)))
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(groups.max() + 1)
            for train, test in GroupKFold(FOLDS).split(masks, groups=order[groups]):
                x = np.concatenate([tokens[row][targets[row] >= 0] for row in train])
                y = np.concatenate([targets[row][targets[row] >= 0] for row in train])
                model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=50)).fit(x, y)
                for row in test:
                    shape = (masks[row].shape[0], masks[row].shape[1])
                    predicted = preparation.image_logits(model.decision_function(tokens[row]), shape) > 0
                    total = predicted.sum() + masks[row].sum()
                    dices[setting][seed, row] = 2 * (predicted & (masks[row] > 0)).sum() / total if total else 1.0
    draws = draws_of_groups(groups)
    return {
        setting: {
            "dice": round(float(values.mean()), 4),
            "seeds": [round(float(value), 4) for value in values.mean(axis=1)],
            "difference": interval([float((values - dices["square"])[:, rows].mean()) for rows in draws]),
        }
        for setting, values in dices.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--dermoscopy", help="folder with images, labels.csv (label, lesion_id)")
    parser.add_argument("--polyps", help="folder with images, masks, labels.csv (group)")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=1200, help="of dermoscopy")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    backbone = load_backbone(arguments.backbone)
    results: dict[str, Any] = {}
    if arguments.polyps:
        results["polyps"] = compare_segmentation(backbone, arguments.polyps, arguments.size, arguments.seeds)
        print(json.dumps(results["polyps"], indent=1), flush=True)
    if arguments.dermoscopy:
        results["dermoscopy"] = compare_classification(
            backbone, arguments.dermoscopy, arguments.size, arguments.images, arguments.seeds
        )
        print(json.dumps(results["dermoscopy"], indent=1), flush=True)


if __name__ == "__main__":
    main()
