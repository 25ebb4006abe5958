"""Matches of patches on rotated, cropped, enlarged and reduced copies of images: share of correct matches.

    python benchmarks/features/matches.py --backbone runs/ssl [--backbone runs/ssl/untrained] [--data IMAGES ...]
        [--image-size 192] [--images 12] [--min-similarity 0.5] [--device cpu] [--json]

A copy shows a part of the image, rotated, brighter and with noise, so each of its pixels has a known place in the
image. A match is correct if its two patches lie at most one patch of the image apart, in rows and in columns. The last
row matches different images: no pair has a known place there.

`--backbone` takes what every command of dinomed takes: a run, a folder, a file of weights, `timm/NAME` or
`hf-hub:ORG/NAME`. `--image-size` must be a multiple of the patch size. 24 x 24 patches, as with the default and patches
of 8 px, need 336 for patches of 14 px and 384 for patches of 16 px.

`--data` names a folder of images; several are measured one by one. Without it the images are synthetic lesions. Two
baselines need no backbone: the pixels of each patch, and its mean colour.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinomed.backbones.load import load_backbone
from dinomed.datasets.synthetic.lesions import write_lesions
from dinomed.errors import DinomedError
from dinomed.explore.images import patch_tokens, reduce_shown
from dinomed.explore.match import match_patches
from dinomed.images.read import read_image
from dinomed.log import set_level

WARPS = {"same size, brighter": (0, 1.0, 1), "reduced to a quarter of the pixels": (0, 1.0, 2),
         "crop of 80%": (0, 0.8, 1), "crop of 60%": (0, 0.6, 1), "crop of 40%": (0, 0.4, 1),
         "15°, crop of 60%": (15, 0.6, 1), "45°, crop of 60%": (45, 0.6, 1), "90°, crop of 60%": (90, 0.6, 1),
         "180°, crop of 60%": (180, 0.6, 1)}  # fmt: skip
"""Name -> rotation in degrees, side of the copy as a share of the side of the image, and by how much its resolution is
reduced. A crop is enlarged to the size of the image: one of 40% shows everything 2.5 times as large."""
LONGEST_PX = 640  # to which images are reduced first


def warp(image: np.ndarray, degrees: float, scale: float, seed: int, reduced: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the copy, uint8 (H, W, 3), and the matrix (2, 3) from its pixels (x, y, 1) to those of the image."""
    height, width = image.shape[:2]
    turn = np.deg2rad(degrees)
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    middle = np.array([width / 2, height / 2])
    matrix = np.column_stack([linear, middle - linear @ middle])
    copy = Image.fromarray(image).transform((width, height), Image.Transform.AFFINE, matrix.ravel(), Image.BICUBIC)
    if reduced > 1:
        copy = copy.resize((width // reduced, height // reduced), Image.Resampling.BOX).resize((width, height))
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


Describe = Callable[[list[np.ndarray]], list[np.ndarray]]
"""From images, uint8 (H, W, 3), to the vectors of their patches, each (rows, columns, C)."""


def describe_pixels(images: list[np.ndarray], rows: int, patch: int) -> list[np.ndarray]:
    """Return the pixels of each patch, in a grid of `rows` x `rows` patches of `patch` px."""
    side = rows * patch
    squares = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) for image in images]
    return [
        square.reshape(rows, patch, rows, patch, 3).swapaxes(1, 2).reshape(rows, rows, -1).astype(np.float32)
        for square in squares
    ]


def describe_colours(images: list[np.ndarray], rows: int, patch: int) -> list[np.ndarray]:
    """Return the mean colour of each patch."""
    return [
        pixels.reshape(rows, rows, -1, 3).mean(axis=2).astype(np.float32)
        for pixels in describe_pixels(images, rows, patch)
    ]


def measure(describe: Describe, images: list[np.ndarray], min_similarity: float) -> list[dict[str, Any]]:
    """Return for each warp the matches of a pair and the share of correct ones."""
    tokens = describe(images)
    rows = []
    for name, (degrees, scale, reduced) in WARPS.items():
        copies = [warp(image, degrees, scale, seed, reduced) for seed, image in enumerate(images)]
        warped = describe([copy for copy, _ in copies])
        counts = np.array([
            count_correct(a, b, matrix, image.shape[:2], min_similarity)
            for a, b, (_, matrix), image in zip(tokens, warped, copies, images, strict=True)
        ])  # fmt: skip
        total, correct = (int(count) for count in counts.sum(axis=0))
        share = correct / total if total else None
        rows.append({"copy": name, "matches": total / len(images), "correct": share, "counts": [correct, total]})
    counts = [len(match_patches(a, b, min_similarity=min_similarity)) for a, b in itertools.pairwise(tokens)]
    return [*rows, {"copy": "another image", "matches": float(np.mean(counts)), "correct": None, "counts": None}]


def read_folder(folder: Path, count: int) -> list[np.ndarray]:
    """Read images that are spread evenly over a folder, reduced to `LONGEST_PX`."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise SystemExit(f"{folder} holds no JPEG or PNG images")
    chosen = sorted({int(place) for place in np.linspace(0, len(paths) - 1, count)})
    return [reduce_shown(read_image(paths[place]), LONGEST_PX) for place in chosen]


def synthetic_lesions(count: int) -> list[np.ndarray]:
    """Return drawn lesions."""
    with tempfile.TemporaryDirectory() as folder:
        made = write_lesions(Path(folder), count=count, seed=7, size=(480, 640), broken=0)
        return [read_image(path) for path in sorted((made / "images").glob("*.jpg"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", action="append", required=True, help="several need patches of one size")
    parser.add_argument("--data", action="append", type=Path, help="folder of images; may be given several times")
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--min-similarity", type=float, default=0.5)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    set_level("warning")
    size, ways, grids = arguments.image_size, dict[str, Describe](), set[tuple[int, int]]()
    try:
        for name in arguments.backbone:
            backbone = load_backbone(name, image_size=size, device=arguments.device)
            ways[name] = partial(patch_tokens, backbone)
            grids.add(backbone.grid((size, size)))
    except DinomedError as error:
        raise SystemExit(f"error: {error}") from None
    if len(grids) > 1:
        raise SystemExit("error: the backbones have patches of different sizes; measure each by a call of its own")
    ((rows, _),) = grids
    patch = size // rows
    ways["pixels"] = partial(describe_pixels, rows=rows, patch=patch)
    ways["mean colour"] = partial(describe_colours, rows=rows, patch=patch)
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for folder in arguments.data or [None]:
        images = synthetic_lesions(arguments.images) if folder is None else read_folder(folder, arguments.images)
        title = "synthetic lesions" if folder is None else str(folder)
        results[title] = {name: measure(describe, images, arguments.min_similarity) for name, describe in ways.items()}
    print(json.dumps(results, indent=1) if arguments.json else format_tables(results))


def format_tables(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Return a table for each data set, with a column for each way to describe patches."""
    lines: list[str] = []
    for title, of_ways in results.items():
        lines += ["", title, f"| copy | {' | '.join(of_ways)} |", f"|---|{'---|' * len(of_ways)}"]
        for of_warp in zip(*of_ways.values(), strict=True):
            cells = [
                f"{row['matches']:.1f}" if row["counts"] is None
                else f"{row['correct'] or 0:.0%} ({row['counts'][0]}/{row['counts'][1]})"
                for row in of_warp
            ]  # fmt: skip
            lines.append(f"| {of_warp[0]['copy']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
