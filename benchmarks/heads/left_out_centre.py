"""Segmenters trained without one centre and tested on it, against segmenters that know the centre.

    python benchmarks/heads/left_out_centre.py POLYPS --column centre --group group [--backbone runs/ssl]

POLYPS is a folder with images, masks and labels.csv. For each centre, light heads on a frozen backbone are trained on
the images of the other centres (*without*). To compare, other heads are trained with half of the groups of the centre
in place of as many images of the others, and tested on its other half; both halves in turn (*with*). So each image of
the centre is predicted once by each, and its group is never in training. `--only-without` leaves this comparison out,
which takes two thirds of the time. A fifth of the training groups chooses the
epoch and the threshold.

Values are means of the Dice over images (1 if both masks are empty, 0 if one is); intervals are of a bootstrap over the
groups of the centre. `empty` is the share of images without a polyp. The lines below the table are those that
`dinomed evaluate --by` gives for the predictions *without*: all images, each by the head that has not seen its centre,
the worst and the best centre, and the gap between them. Without `--backbone` the backbone is untrained: a ViT of 192
values and 4 blocks with random weights (seed 0), whose values say nothing about a trained one.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dinomed
from dinomed.adapters.evaluated import EvaluatedValues
from dinomed.adapters.evaluation.comparison import compare
from dinomed.adapters.evaluation.subgroups import split_subgroups
from dinomed.backbones.config import ViTConfig
from dinomed.backbones.load import save_backbone
from dinomed.backbones.preprocessing import Preprocessing
from dinomed.backbones.vit import VisionTransformer
from dinomed.datasets.manifest import Manifest, build_manifest, write_manifest
from dinomed.datasets.scan.scan import scan
from dinomed.images.read import read_mask
from dinomed.metrics.bootstrap import bootstrap_mean
from dinomed.metrics.segmentation import overlap

VAL = 0.2
"""Share of the training groups that chooses the epoch and the threshold."""


def untrained_backbone(folder: Path) -> Path:
    """Write a backbone with random weights, and return its folder."""
    torch.manual_seed(0)
    vit = VisionTransformer(ViTConfig(embed_dim=192, depth=4, num_heads=3, patch_size=8, image_size=128))
    save_backbone(folder / "backbone", vit, Preprocessing(image_size=128), {})
    return folder / "backbone"


def shuffled_groups(groups: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the rows of each group among `rows`, the groups in random order."""
    names = rng.permutation(np.unique(groups[rows])).tolist()
    return [rows[groups[rows] == name] for name in names]


def halves(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of groups in two halves of about as many rows: each next group joins the smaller half."""
    sides: tuple[list[int], list[int]] = [], []
    for part in sorted(parts, key=len, reverse=True):
        min(sides, key=len).extend(part.tolist())
    return np.array(sides[0], int), np.array(sides[1], int)


def without_rows(parts: list[np.ndarray], count: int) -> np.ndarray:
    """Return the rows of groups without the first groups that have together `count` rows or more."""
    while parts and count > 0:
        count -= len(parts[0])
        parts = parts[1:]
    return np.concatenate(parts)


def fit_and_test(
    backbone: str, manifest: Manifest, train: np.ndarray, test: np.ndarray, out: Path, settings: list[str], seed: int
) -> np.ndarray:
    """Train a segmenter on some rows of a manifest, and return its Dice of the rows `test`."""
    groups = np.array(manifest.units())
    assert not set(groups[train]) & set(groups[test]), "a group is in training and test"
    parts = shuffled_groups(groups, train, np.random.default_rng(seed))
    split = np.full(len(manifest), None, object)
    split[train] = "train"
    for part in parts[: max(round(VAL * len(parts)), 1)]:
        split[part] = "val"
    split[test] = "test"
    columns: dict[str, list[Any]] = {name: manifest.column(name) for name in manifest.columns} | {"split": list(split)}
    rows = np.sort(np.concatenate([train, test]))
    data = build_manifest(columns, manifest.root).take(rows.tolist())
    write_manifest(data, out / "data.parquet")
    fitted = dinomed.train(
        "segment", backbone, out / "data.parquet", out / "head", settings=settings, seed=seed,
        cache=out.parent / "cache", overwrite=True,
    )  # fmt: skip
    predictor = dinomed.load_adapter(fitted)
    scores = []
    for row, prediction in zip(test, predictor.predict([manifest.path(int(row)) for row in test]), strict=True):
        target = read_mask(manifest.root / manifest.table["mask"][int(row)].as_py(), size=prediction.mask.shape)
        scores.append(overlap(target, prediction.mask).dice)
    return np.array(scores)


def compare_centre(
    backbone: str,
    manifest: Manifest,
    centres: np.ndarray,
    centre: str,
    folder: Path,
    settings: list[str],
    seed: int,
    compared: bool = True,
) -> tuple[dict[str, Any], np.ndarray]:
    """Compare heads without and, if `compared`, with images of a centre.

    Returns:
        The row of the table, and the Dice of each image of the manifest *without*, float (N,), nan of other centres.
    """
    groups, rng = np.array(manifest.units()), np.random.default_rng(seed)
    inside, outside = np.flatnonzero(centres == centre), np.flatnonzero(centres != centre)
    scores = {name: np.full(len(manifest), np.nan) for name in ("without", "with")}
    scores["without"][inside] = fit_and_test(backbone, manifest, outside, inside, folder, settings, seed)
    first, second = halves(shuffled_groups(groups, inside, rng))
    for train, test in ((first, second), (second, first)) if compared else ():
        others = without_rows(shuffled_groups(groups, outside, rng), len(train))
        rows = np.concatenate([others, train])
        scores["with"][test] = fit_and_test(backbone, manifest, rows, test, folder, settings, seed)
    columns = {"without": scores["without"][inside]}
    if compared:
        columns |= {"with": scores["with"][inside], "difference": (scores["without"] - scores["with"])[inside]}
    values = np.stack(list(columns.values()), axis=1)
    intervals = bootstrap_mean(values, groups[inside].tolist())
    masks = [read_mask(manifest.root / manifest.table["mask"][int(row)].as_py()) for row in inside]
    row: dict[str, Any] = {"centre": centre, "images": len(inside), "groups": len(set(groups[inside]))}
    row["empty"] = round(float(np.mean([not mask.any() for mask in masks])), 2)
    for place, name in enumerate(columns):
        low, high = intervals[place].low, intervals[place].high
        row[name] = f"{values[:, place].mean():.2f} ({low:.2f} to {high:.2f})"
    return row, scores["without"]


def summarize_gap(manifest: Manifest, column: str, dice: np.ndarray) -> dict[str, Any]:
    """Return the mean Dice of all images with its interval, and the gap between centres as `evaluate --by` has it."""
    groups = [str(unit) for unit in manifest.units()]
    evaluated = EvaluatedValues(manifest, groups, {"dice": dice}, lambda rows: {"dice": float(dice[rows].mean())})
    comparison = compare(evaluated, split_subgroups(manifest, column))
    (gap,) = comparison["measures"]
    return {"all": evaluated.intervals(range(len(groups)))["dice"], "gap": gap, "rule": comparison["rule"]}


def check_groups(centres: np.ndarray, groups: np.ndarray) -> None:
    """End the program if a centre has one group, which cannot be on both sides, or the others have two or less."""
    for centre in np.unique(centres):
        inside, outside = len(set(groups[centres == centre])), len(set(groups[centres != centre]))
        if inside < 2 or outside < 3:
            raise SystemExit(
                f"centre {centre}: {inside} groups, the other centres {outside}; a comparison needs 2 of it and "
                "3 of the others. Leave its rows out of labels.csv, or name another --column or --group"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Folder with images, masks and labels.csv.")
    parser.add_argument("--column", required=True, help="Column of the centres.")
    parser.add_argument("--group", required=True, help="Column of the patients or sequences.")
    parser.add_argument("--backbone", help="Backbone [an untrained one].")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], help="Setting of the segmenter: a.b=value."
    )
    parser.add_argument("--only-without", action="store_true", help="Train no heads with images of the centre.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of splits and training [0].")
    parser.add_argument("--json", action="store_true", help="Print the values as JSON.")
    arguments = parser.parse_args()
    manifest = scan(arguments.folder, labels="labels.csv", group=arguments.group, keep=[arguments.column]).manifest
    manifest = manifest.take([row for row, mask in enumerate(manifest.column("mask")) if mask is not None])
    manifest = manifest.take(
        [row for row, centre in enumerate(manifest.column(arguments.column)) if centre is not None]
    )
    centres = np.array(manifest.column(arguments.column))
    check_groups(centres, np.array(manifest.units()))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "work").mkdir()
        backbone = arguments.backbone or str(untrained_backbone(folder))
        dice, rows = np.full(len(manifest), np.nan), []
        for centre in np.unique(centres):
            row, scores = compare_centre(
                backbone, manifest, centres, str(centre), folder / "work", arguments.settings, arguments.seed,
                not arguments.only_without,
            )  # fmt: skip
            rows.append(row)
            if not arguments.json:
                head = "| " + " | ".join(row) + " |\n|" + "---|" * len(row) + "\n" if len(rows) == 1 else ""
                print(head + "| " + " | ".join(map(str, row.values())) + " |", flush=True)
            dice = np.where(np.isnan(scores), dice, scores)
    summary = summarize_gap(manifest, arguments.column, dice)
    print(json.dumps({"centres": rows, "summary": summary}) if arguments.json else f"\n{json.dumps(summary)}")


if __name__ == "__main__":
    main()
