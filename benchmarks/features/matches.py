"""Matches of patches on rotated and cropped copies of synthetic lesions: share of correct matches.

    python benchmarks/features/matches.py runs/ssl [runs/ssl/untrained ...] [--image-size 192] [--images 12]
        [--min-similarity 0.5] [--json]

A copy shows a part of the image, rotated, brighter and with noise, so each of its pixels has a known place in the
image. A match is correct if its two patches lie at most one patch of the image apart, in rows and in columns. The last
row matches different images: no pair has a known place there.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinomed.backbones.frozen import FrozenBackbone
from dinomed.backbones.load import load_backbone
from dinomed.datasets.synthetic.lesions import write_lesions
from dinomed.explore.images import patch_tokens
from dinomed.explore.match import match_patches
from dinomed.images.read import read_image
from dinomed.log import set_level

WARPS = {"same size, brighter": (0, 1.0), "crop of 60%": (0, 0.6), "15°, crop of 60%": (15, 0.6),
         "45°, crop of 60%": (45, 0.6), "90°, crop of 60%": (90, 0.6), "180°, crop of 60%": (180, 0.6)}  # fmt: skip
"""Name -> rotation in degrees, and side of the copy as a share of the side of the image."""


def warp(image: np.ndarray, degrees: float, scale: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the copy, uint8 (H, W, 3), and the matrix (2, 3) from its pixels (x, y, 1) to those of the image."""
    height, width = image.shape[:2]
    turn = np.deg2rad(degrees)
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    middle = np.array([width / 2, height / 2])
    matrix = np.column_stack([linear, middle - linear @ middle])
    copy = Image.fromarray(image).transform((width, height), Image.Transform.AFFINE, matrix.ravel(), Image.BICUBIC)
    noise = np.random.default_rng(seed).normal(0, 4, image.shape)
    return np.clip(np.asarray(copy) * 1.1 + noise, 0, 255).astype(np.uint8), matrix


def count_correct(
    first: np.ndarray, second: np.ndarray, matrix: np.ndarray, size: tuple[int, int], min_similarity: float
) -> tuple[int, int]:
    """Return the numbers of matches and of correct ones between the tokens of an image and of its copy."""
    height, width = size
    patch = np.array([width / first.shape[1], height / first.shape[0]])  # px of the image
    matches = match_patches(first, second, min_similarity=min_similarity)
    correct = 0
    for match in matches:
        here = (np.array(match.first)[::-1] + 0.5) * patch
        there = (np.array(match.second)[::-1] + 0.5) * [width / second.shape[1], height / second.shape[0]]
        correct += bool((np.abs(matrix @ [*there, 1] - here) <= patch + 1e-6).all())
    return len(matches), correct


def measure(backbone: FrozenBackbone, images: list[np.ndarray], min_similarity: float) -> list[dict[str, Any]]:
    """Return for each warp the matches of a pair and the share of correct ones."""
    tokens = patch_tokens(backbone, images)
    rows = []
    for name, (degrees, scale) in WARPS.items():
        copies = [warp(image, degrees, scale, seed) for seed, image in enumerate(images)]
        warped = patch_tokens(backbone, [copy for copy, _ in copies])
        counts = np.array([
            count_correct(a, b, matrix, image.shape[:2], min_similarity)
            for a, b, (_, matrix), image in zip(tokens, warped, copies, images, strict=True)
        ])  # fmt: skip
        total, correct = counts.sum(axis=0)
        rows.append({"copy": name, "matches": total / len(images), "correct": correct / total if total else None})
    counts = [len(match_patches(a, b, min_similarity=min_similarity)) for a, b in itertools.pairwise(tokens)]
    return [*rows, {"copy": "another image", "matches": float(np.mean(counts)), "correct": None}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="+", help="backbones, as `--backbone` takes them")
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--min-similarity", type=float, default=0.5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    set_level("warning")
    with tempfile.TemporaryDirectory() as folder:
        made = write_lesions(Path(folder), count=arguments.images, seed=7, size=(480, 640), broken=0)
        images = [read_image(path) for path in sorted((made / "images").glob("*.jpg"))]
    results = {}
    for name in arguments.backbones:
        backbone = load_backbone(name, image_size=arguments.image_size)
        results[name] = measure(backbone, images, arguments.min_similarity)
    if arguments.json:
        print(json.dumps(results, indent=1))
        return
    for name, rows in results.items():
        print(f"\n{name}\n| copy | matches a pair | correct |\n|---|---|---|")
        for row in rows:
            share = "" if row["correct"] is None else f"{row['correct']:.0%}"
            print(f"| {row['copy']} | {row['matches']:.1f} | {share} |")


if __name__ == "__main__":
    main()
