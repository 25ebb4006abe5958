"""Few-shot draws: by group, nested and seeded; the curve equals a direct fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LogisticRegression

from dinomed.adapters.evaluation.few_shot import STRENGTH, draw_shots, few_shot, parse_shots
from dinomed.apps.pages.few_shot import advice, build_few_shot_page
from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import read_manifest
from dinomed.errors import UsageError
from dinomed.features.extract import extract
from dinomed.metrics.classification import classification_metrics


def test_shots_are_whole_groups_of_each_class_nested_and_seeded() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 200).tolist()
    labels = np.array([group % 3 for group in groups])
    before: set[int] = set()
    for count in (1, 2, 5):
        rows = draw_shots(labels, groups, count, 7)
        chosen = {groups[row] for row in rows}
        assert [sum(group % 3 == label for group in chosen) for label in range(3)] == [count] * 3
        assert set(rows) == {row for row in range(200) if groups[row] in chosen}
        assert before <= set(rows)
        before = set(rows)
    assert (draw_shots(labels, groups, 5, 7) == draw_shots(labels, groups, 5, 7)).all()
    assert set(draw_shots(labels, groups, 5, 8)) != before
    assert len(draw_shots(labels, groups, None, 0)) == len(draw_shots(labels, groups, 1000, 0)) == 200


def test_numbers_of_shots_are_parsed_or_refused() -> None:
    assert parse_shots("8, 1,all,2,2") == (1, 2, 8, None)
    for wrong in ("0", "one", "1,-2", "", "1.5", "²", "9" * 5000):
        with pytest.raises(UsageError, match="`shots"):
            parse_shots(wrong)


def test_the_curve_is_a_weighted_regression_on_the_drawn_rows(
    tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path
) -> None:
    backbone, manifest = load_backbone(tiny_backbone), read_manifest(lesion_manifest)
    report = few_shot(backbone, manifest, cache=tmp_path, shots=(1, 3, None), seeds=2)
    assert [row["draws"] for row in report["shots"]] == [2, 2, 1]
    assert report["aspect"] == "square"
    parts = {name: manifest.select(split=name) for name in ("train", "test")}
    x = {name: extract(backbone, part, cache=tmp_path).cls for name, part in parts.items()}
    classes = manifest.classes()
    y = {name: np.array([classes.index(label) for label in part.column("label")]) for name, part in parts.items()}
    shift, scale = x["train"].mean(0, dtype=float), x["train"].std(0, dtype=float)
    values = []
    for seed in range(2):
        rows = draw_shots(y["train"], parts["train"].column("group"), 3, seed)
        model = LogisticRegression(C=STRENGTH, class_weight="balanced", tol=1e-8, max_iter=2000)
        model.fit((x["train"][rows] - shift) / scale, y["train"][rows])
        probabilities = model.predict_proba((x["test"] - shift) / scale)
        values.append(classification_metrics(y["test"], probabilities, classes)["auroc"])
    row = report["shots"][1]["auroc"]
    # a pair of nearly equal scores may turn with the solver's tolerance
    assert row["mean"] == pytest.approx(np.mean(values), abs=0.01)
    assert row["low"] <= row["mean"] <= row["high"]
    page = build_few_shot_page(report)
    assert page.count("<svg") == 3
    same = np.zeros((len(y["test"]), len(classes)))
    same[:, np.bincount(y["test"]).argmax()] = 1  # the same answer for every image
    chance = classification_metrics(y["test"], same, classes)
    assert report["chance"] == pytest.approx({name: chance[name] for name in report["chance"]})
    for name, value in (("chance", chance["auroc"]), ("most frequent class", chance["accuracy"])):
        assert f">{name}: {value:.2f}</text>" in page
    assert not any(value in page for column in ("image", "group") for value in manifest.column(column))


def test_a_draw_of_one_class_gives_each_image_this_class(
    tiny_backbone: Path, lesion_manifest: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(lesion_manifest)
    first, second = manifest.classes()[:2]
    splits = manifest.column("split")
    train = [row for row, split in enumerate(splits) if split == "train"]
    labels = [
        first if split == "train" else label for split, label in zip(splits, manifest.column("label"), strict=True)
    ]
    groups = [f"{split} {row}" for row, split in enumerate(splits)]
    labels[train[0]] = second  # the only group with the second class has more images of the first one
    for row in train[:3]:
        groups[row] = "mixed"
    table = manifest.table
    for name, values in (("label", labels), ("group", groups)):
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    data = replace(manifest, table=table)
    units = [groups[row] for row in train]
    numbers = np.array([int(labels[row] == second) for row in train])
    seed = next(seed for seed in range(99) if not numbers[draw_shots(numbers, units, 1, seed)].any())
    report = few_shot(load_backbone(tiny_backbone), data, cache=tmp_path, shots=(1,), seeds=1, seed=seed)
    row, test = report["shots"][0], data.select(split="test")
    assert row["images"] == 1
    assert row["accuracy"]["mean"] == pytest.approx(test.column("label").count(first) / len(test))
    assert row["balanced_accuracy"]["mean"] == pytest.approx(1 / len(set(test.column("label"))))
    assert row["auroc"]["mean"] == 0.5


def test_the_advice_follows_the_last_step() -> None:
    def report(gain: float) -> dict:
        rows = [(8, 0.7), (None, 0.7 + gain)]
        return {"shots": [{"shots": count, "auroc": {"mean": value, "sd": 0.01}} for count, value in rows]}

    assert "likely to help" in advice(report(0.05))
    assert "within the spread" in advice(report(0.002))
    assert "A single number" in advice({"shots": [{"shots": 1, "auroc": {"mean": float("nan"), "sd": 0.0}}]})
