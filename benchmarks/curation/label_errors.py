"""Precision and recall of the search for label errors (`dinomed audit --labels`) on planted errors.

    python benchmarks/curation/label_errors.py runs/derm.parquet --backbone runs/ssl [--column label] [--images 2000]
        [--rates 0.05,0.1,0.2] [--draws 3] [--cache FOLDER] [--json]

The labels of a share of the groups (lesions) are replaced: each by another class, all alike. Errors that the labels had
before count as false alarms, so the precision is a lower bound. `top` is the precision among as many of the most
doubtful images as there are planted errors. Means over the draws, with the smallest and the largest precision.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.adapters.evaluation.label_errors import find_label_errors
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import read_manifest
from dinomed.features.extract import default_cache, extract


def plant(labels: list[str], groups: list[str], rate: float, seed: int) -> tuple[list[str], np.ndarray]:
    """Return labels with errors in a share of the groups, and whether each label is wrong."""
    rng = np.random.default_rng(seed)
    names, units = sorted(set(labels)), sorted(set(groups))
    shifts = {
        units[i]: int(rng.integers(1, len(names))) for i in rng.permutation(len(units))[: round(rate * len(units))]
    }
    planted = [
        names[(names.index(label) + shifts.get(group, 0)) % len(names)]
        for label, group in zip(labels, groups, strict=True)
    ]
    return planted, np.array([a != b for a, b in zip(planted, labels, strict=True)])


def measure(
    features: np.ndarray, labels: list[str], groups: list[str], rate: float, draws: int
) -> list[dict[str, Any]]:
    """Return a row for each method: precision and recall at one rate of errors."""
    values: dict[str, list[tuple[float, float]]] = {}
    top: list[float] = []
    for draw in range(draws):
        planted, wrong = plant(labels, groups, rate, draw)
        result = find_label_errors(features, planted, groups, seed=draw)
        bad = wrong[result.rows]
        for name, flags in (
            ("out-of-fold prediction", result.by_prediction),
            ("neighbours", result.by_neighbors),
            ("both (a suspect)", result.suspects),
        ):
            values.setdefault(name, []).append((float(bad[flags].mean()), float(bad[flags].sum() / wrong.sum())))
        top.append(float(bad[: wrong.sum()].mean()))
    rows = []
    for name, pairs in values.items():
        precision, recall = np.array(pairs).T
        rows.append({
            "errors": f"{rate:.0%}", "method": name, "precision": round(float(precision.mean()), 2),
            "range": f"{precision.min():.2f} to {precision.max():.2f}", "recall": round(float(recall.mean()), 2),
            "top": round(float(np.mean(top)), 2),
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="manifest with labels and groups")
    parser.add_argument("--backbone", required=True, help="run folder, backbone folder or name")
    parser.add_argument("--column", default="label", help="column of the classes")
    parser.add_argument("--images", type=int, default=2000, help="number of images")
    parser.add_argument("--rates", default="0.05,0.1,0.2", help="shares of groups with a wrong label")
    parser.add_argument("--draws", type=int, default=3, help="number of draws of the errors")
    parser.add_argument("--cache", type=Path, help="folder of cached features")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.data)
    rows = np.flatnonzero([label is not None for label in manifest.column(arguments.column)])
    chosen = np.random.default_rng(0).permutation(rows)[: arguments.images]
    images = manifest.take(sorted(chosen.tolist()))
    cache = arguments.cache or default_cache(arguments.data)
    features = extract(load_backbone(arguments.backbone), images, cache=cache).cls
    labels, groups = images.column(arguments.column), images.units()
    table = [
        row
        for rate in map(float, arguments.rates.split(","))
        for row in measure(features, labels, groups, rate, arguments.draws)
    ]
    if arguments.json:
        print(json.dumps(table, indent=2))
        return
    print("| " + " | ".join(table[0]) + " |\n|" + "---|" * len(table[0]))
    for row in table:
        print("| " + " | ".join(map(str, row.values())) + " |")


if __name__ == "__main__":
    main()
