"""Search for label errors on real images, some of whose labels are exchanged on purpose.

    python benchmarks/heads/planted_labels.py runs/derm.parquet -b runs/ssl

In each draw a share of the groups gets the label of another class, drawn by the frequencies of the classes; all images
of a group get the same one. Precision is the share of exchanged labels among the suspects; labels that were wrong
before count as errors of the search. Precision by chance is the share itself. `top_precision` is that of as many images
at the top of the ranking as were exchanged.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.adapters.evaluation.label_errors import LabelErrors, find_label_errors
from dinomed.adapters.fitting.data import labelled
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import read_manifest
from dinomed.features.extract import default_cache, extract
from dinomed.io.files import to_json


def exchange_labels(
    labels: list[str], groups: list[str], share: float, rng: np.random.Generator
) -> tuple[list[str], np.ndarray]:
    """Return labels of which a share of the groups got another class, and which rows these are, bool (N,)."""
    names, counts = np.unique(labels, return_counts=True)
    units = sorted(set(groups))
    chosen = set(rng.choice(units, round(share * len(units)), replace=False).tolist())
    exchanged: dict[str, str] = {}
    result = list(labels)
    for row, (label, group) in enumerate(zip(labels, groups, strict=True)):
        if group in chosen:
            if group not in exchanged:
                weights = np.where(names == label, 0, counts)
                exchanged[group] = str(rng.choice(names, p=weights / weights.sum()))
            result[row] = exchanged[group]
    return result, np.array([a != b for a, b in zip(labels, result, strict=True)])


def judge(errors: LabelErrors, wrong: np.ndarray) -> dict[str, float]:
    """Return precision and recall of the suspects, of each estimate alone, and of the top of the ranking."""
    planted = wrong[errors.rows]
    result = {}
    for name, suspects in (
        ("both", errors.suspects),
        ("prediction", errors.by_prediction),
        ("neighbors", errors.by_neighbors),
    ):
        result[f"{name}_precision"] = planted[suspects].mean() if suspects.any() else float("nan")
        result[f"{name}_recall"] = planted[suspects].sum() / max(wrong.sum(), 1)
    result["top_precision"] = planted[: wrong.sum()].mean()
    return {key: round(float(value), 3) for key, value in result.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="manifest with labels")
    parser.add_argument("--backbone", "-b", required=True)
    parser.add_argument("--images", type=int, default=3_000, help="first images of a random order [3000]")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.03, 0.1], help="of the groups [0.03 0.1]")
    parser.add_argument("--draws", type=int, default=3)
    arguments = parser.parse_args()
    images = labelled(read_manifest(arguments.data))
    images = images.take(sorted(np.random.default_rng(0).permutation(len(images))[: arguments.images].tolist()))
    backbone = load_backbone(arguments.backbone)
    features = extract(backbone, images, cache=default_cache(Path(arguments.data))).cls
    labels, groups = [str(label) for label in images.column("label")], images.units()
    for share in arguments.shares:
        rows: list[dict[str, Any]] = []
        for draw in range(arguments.draws):
            changed, wrong = exchange_labels(labels, groups, share, np.random.default_rng(draw))
            rows.append({"exchanged": int(wrong.sum())} | judge(find_label_errors(features, changed, groups), wrong))
        summary = {key: [min(row[key] for row in rows), max(row[key] for row in rows)] for key in rows[0]}
        print(
            to_json({"images": len(images), "share": share, "smallest and largest of the draws": summary}), flush=True
        )


if __name__ == "__main__":
    main()
