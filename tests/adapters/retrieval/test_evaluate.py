"""Evaluation of an index."""

from pathlib import Path

import numpy as np
import pytest

from dinomed.adapters.retrieval.build import build_index
from dinomed.adapters.retrieval.evaluate import evaluate_index
from dinomed.adapters.retrieval.filters import parse_conditions
from dinomed.adapters.retrieval.search import load_index
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import Manifest, build_manifest
from dinomed.errors import UsageError


def test_evaluation_follows_the_definition(made: Path, lesions: Manifest) -> None:
    """mAP and recall of every test image by a plain loop in float64: its group and itself are no results."""
    image_index = load_index(made / "flat")
    evaluation = evaluate_index(image_index, lesions, "test", conditions=parse_conditions(["split=train"]))
    groups, labels, splits = (lesions.column(name) for name in ("group", "label", "split"))
    vectors = image_index.vector_index.vectors.astype(np.float64)
    precisions, recalls = [], []
    for row in [i for i, split in enumerate(splits) if split == "test"]:
        candidates = [j for j in range(60) if splits[j] == "train" and groups[j] != groups[row]]
        candidates.sort(key=lambda j: -(vectors[j] @ vectors[row]))
        hits = [labels[j] == labels[row] for j in candidates]
        places = [i for i, hit in enumerate(hits, 1) if hit]
        precisions.append(np.mean([n / place for n, place in enumerate(places, 1)]))
        recalls.append(sum(hits[:5]) / sum(hits))
    assert evaluation["metrics"]["map"] == pytest.approx(np.mean(precisions), abs=1e-9)
    assert evaluation["metrics"]["recall@5"] == pytest.approx(np.mean(recalls), abs=1e-9)
    assert evaluation["metrics"]["n"] == len(precisions) == sum(row["n"] for row in evaluation["per_class"].values())
    low, high = evaluation["metrics"]["intervals"]["map"]
    assert low < evaluation["metrics"]["map"] < high
    assert evaluation["index"]["searched"] == splits.count("train")
    assert evaluation["index"]["graph_recall@10"] is None


def test_an_evaluation_computes_features_of_images_outside_the_index(
    lesions: Manifest, tiny_backbone: Path, tmp_path: Path, made: Path
) -> None:
    train = lesions.select(split="train")
    build_index(load_backbone(tiny_backbone), train, tmp_path / "train", cache=tmp_path / "cache", kind="hnsw")
    evaluation = evaluate_index(load_index(tmp_path / "train"), lesions, "test")
    whole = evaluate_index(load_index(made / "flat"), lesions, "test", conditions=parse_conditions(["split=train"]))
    assert evaluation["metrics"]["map"] == pytest.approx(
        whole["metrics"]["map"], abs=1e-6
    )  # batches differ in rounding
    assert evaluation["index"]["graph_recall@10"] == 1.0  # so few are searched exhaustively


def test_an_evaluation_without_labels_or_images_is_refused(made: Path, lesions: Manifest) -> None:
    image_index = load_index(made / "flat")
    with pytest.raises(UsageError, match="no labels in a column 'grade'"):
        evaluate_index(image_index, lesions, "test", label="grade")
    with pytest.raises(UsageError, match="no usable image in split 'holdout'"):
        evaluate_index(image_index, lesions, "holdout")
    other = [f"other {label}" for label in lesions.column("label")]
    columns = {name: lesions.column(name) for name in lesions.columns} | {"label": other}
    with pytest.raises(UsageError, match="no image of the index has a label of the queries, such as 'other irregular'"):
        evaluate_index(image_index, build_manifest(columns, lesions.root))
