"""Subgroups of an evaluation: columns, bands and pairs, and the comparison against direct computations."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, roc_auc_score

from dinomed.adapters.evaluated import EvaluatedValues
from dinomed.adapters.evaluation.comparison import compare
from dinomed.adapters.evaluation.report import summarize
from dinomed.adapters.evaluation.subgroups import check_columns, check_subgroups, split_subgroups
from dinomed.adapters.tasks.classify.answer import Answer
from dinomed.adapters.tasks.classify.evaluated import EvaluatedClasses
from dinomed.apps.commands.evaluate import _tables
from dinomed.apps.pages.subgroups import build_subgroup_section, largest_odds_gap, too_small_lines
from dinomed.datasets.manifest import Manifest, build_manifest
from dinomed.errors import UsageError
from dinomed.metrics.calibration import calibration_errors

REPORT = {
    "adapter": "runs/seg", "task": "segment", "split": "test", "backbone": {"name": "ssl"}, "abstention": None,
    "seen_in_training": {"images": 0, "of_seen_groups": 0, "left_out": True},
    "unlike_training": {"images": 0, "of": 60, "problem": None},
}  # fmt: skip
"""Entries of the report of an evaluation that do not concern subgroups."""


def build(**columns: list) -> Manifest:
    count = len(next(iter(columns.values())))
    fixed = {"image": [f"{i}.png" for i in range(count)], "sha256": [f"{i:064x}" for i in range(count)]}
    fixed |= {"width": [8] * count, "height": [8] * count, "mode": ["RGB"] * count, "format": ["PNG"] * count}
    return build_manifest({**fixed, "bytes": [1] * count, **columns}, Path())


def values_of(manifest: Manifest, entry: str) -> list[str]:
    return [subgroup.value for subgroup in split_subgroups(manifest, entry)]


def test_columns_bands_and_pairs_hold_each_row_once_in_order() -> None:
    manifest = build(
        age=["5", "10", "19.9", "20", None, "105"], sex=["m", "f", "m", None, "f", "f"], score=["0.3", "0.1"] * 3
    )
    assert values_of(manifest, "age:10") == [
        "0 to under 10", "10 to under 20", "20 to under 30", "100 to under 110", "not known",
    ]  # fmt: skip
    assert values_of(manifest, "score:0.1") == ["0.1 to under 0.2", "0.3 to under 0.4"]  # 0.3 / 0.1 is below 3
    assert values_of(manifest, "age") == ["5", "10", "19.9", "20", "105", "not known"]
    pairs = split_subgroups(manifest, "sex*age:50")
    assert [pair.value for pair in pairs] == [
        "f, 0 to under 50",
        "f, 100 to under 150",
        "m, 0 to under 50",
        "not known",
    ]
    assert sorted(row for pair in pairs for row in pair.rows) == list(range(6))
    assert [pair.known for pair in pairs] == [True, True, True, False]
    odd = build(**{"a:1": ["x", "y"], "a*b": ["x", "y"]})
    assert values_of(odd, "a:1") == values_of(odd, "a*b") == ["x", "y"]


def test_quartiles_of_large_numbers_have_names_of_their_own() -> None:
    dates = [str(20200100 + day) for day in range(1, 29)]
    subgroups = split_subgroups(build(taken=dates), "taken")
    assert [len(subgroup.rows) for subgroup in subgroups] == [7, 7, 7, 7]
    assert subgroups[0].value.startswith("from 20200101 to 20200107")


def test_a_subgroup_is_judged_by_the_groups_for_which_a_metric_is_defined() -> None:
    manifest = build(site=["x"] * 30 + ["y"] * 30, group=[str(i) for i in range(60)])
    distance = np.where(np.arange(60) < 30, 5.0, np.nan)
    distance[30] = 99.0  # the only image of y with a lesion in both masks
    columns = {"dice": np.linspace(0.5, 0.9, 60), "hd95_px": distance}
    values = EvaluatedValues(manifest, manifest.units(), columns, lambda rows: {}, errors=("hd95_px",))
    dice, hd95 = compare(values, split_subgroups(manifest, "site"), 20)["measures"]
    assert (dice["too_small"], hd95["too_small"], hd95["worst"]) == ([], ["y"], None)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("sx", "no column 'sx'; did you mean 'sex'"),
        ("sx:10", "no column 'sx'; did you mean 'sex'"),
        ("sex*sx", "no column 'sx'; did you mean 'sex'"),
        ("sex:10", "bands need numbers, and the column holds 'm'"),
        ("age:0", "the width of a band is a number above 0, and '0' is none"),
        ("age:-5", "and '-5' is none"),
        ("age:ten", "and 'ten' is none"),
        ("age:nan", "and 'nan' is none"),
        ("age:1", "99 bands; give a larger width"),
        ("empty", "the column is empty"),
        ("empty:10", "the column is empty"),
        ("gone", "no image of split 'test' has a value"),
        ("hospital", "all images of split 'test' have the value 'north'"),
        ("group*sex", "'group' is no property"),
        ("sex*sex", "a pair of two columns"),
        ("sex*age:10*site", "a pair of two columns"),
        ("*", "a pair of two columns"),
    ],
)
def test_bad_entries_are_refused_in_one_line(entry: str, message: str) -> None:
    ages, count = [str(age) for age in range(1, 100)], 99
    manifest = build(
        age=ages, sex=["m", "f", "m"] * 33, empty=[None] * count, hospital=["north"] * 98 + ["south"],
        gone=[None] * 98 + ["x"], site=["a"] * count, group=ages,
    )  # fmt: skip
    rows = manifest.take(range(98)) if entry in ("hospital", "gone") else manifest

    def check() -> None:
        check_columns(manifest, [entry])
        check_subgroups(rows, [entry], "test")

    with pytest.raises(UsageError, match=message) as error:
        check()
    assert "\n" not in str(error.value)


def test_a_pair_with_too_many_values_is_refused() -> None:
    manifest = build(ward=[f"w{i // 12}" for i in range(144)], device=[f"d{i % 12}" for i in range(144)])
    with pytest.raises(UsageError, match=r"`by=ward\*device`: it has 144 pairs, for at most 100"):
        split_subgroups(manifest, "ward*device")


@pytest.fixture(scope="module")
def judged() -> EvaluatedClasses:
    """600 units of 300 patients; the scores of women are worse, and those of children are few."""
    rng = np.random.default_rng(0)
    sex = np.repeat(np.where(np.arange(300) % 2, "f", "m"), 2)
    age = np.repeat(np.where(np.arange(300) < 12, 5, rng.integers(20, 60, 300)), 2)
    labels = rng.choice(3, 600, p=[0.5, 0.3, 0.2])
    logits = rng.normal(size=(600, 3)) + np.eye(3)[labels] * np.where(sex == "m", 2.5, 1.0)[:, None]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    groups = [f"p{i}" for i in np.repeat(np.arange(300), 2)]
    manifest = build(sex=sex.tolist(), age=[str(value) for value in age], group=groups)
    answer = Answer(thresholds=(0.4, 0.3, 0.3))
    return EvaluatedClasses(manifest, groups, labels, probabilities, ["a", "b", "c"], answer)


def test_the_gaps_of_a_classifier_are_those_of_scikit_learn(judged: EvaluatedClasses) -> None:
    report = compare(judged, split_subgroups(judged.manifest, "sex"), 50)
    rows = {(row["measure"], row["class"]): row for row in report["measures"]}
    sex = np.array(judged.manifest.column("sex"))
    labels, probabilities = judged.targets, judged.probabilities
    for index, (name, threshold) in enumerate(zip("abc", (0.4, 0.3, 0.3), strict=True)):
        for value in ("f", "m"):
            positive, scores = labels[sex == value] == index, probabilities[sex == value, index]
            tn, fp, fn, tp = confusion_matrix(positive, scores >= threshold).ravel()
            assert rows["sensitivity", name]["values"][value] == pytest.approx(tp / (tp + fn))
            assert rows["false_positive_rate", name]["values"][value] == pytest.approx(fp / (fp + tn))
            assert rows["auroc", name]["values"][value] == pytest.approx(roc_auc_score(positive, scores))
    for value in ("f", "m"):
        part = probabilities[sex == value]
        right = part.argmax(axis=1) == labels[sex == value]
        assert rows["ece", None]["values"][value] == pytest.approx(calibration_errors(part.max(axis=1), right)[0])
        assert rows["accuracy", None]["values"][value] == pytest.approx(right.mean())
        macro = roc_auc_score(labels[sex == value], part, multi_class="ovr")
        assert rows["auroc", None]["values"][value] == pytest.approx(macro)
    accuracy = rows["accuracy", None]
    assert (accuracy["worst"], accuracy["best"]) == ("f", "m")
    assert accuracy["gap"] == pytest.approx(accuracy["values"]["m"] - accuracy["values"]["f"])
    assert 0 < accuracy["low"] < accuracy["gap"] < accuracy["high"]
    assert report["classes"] == ["a", "b", "c"]
    for row in report["equalised_odds"]:
        pair = [rows[rate, row["class"]]["gap"] for rate in ("sensitivity", "false_positive_rate")]
        assert row["gap"] == max(pair)
    assert [row["gap"] for row in report["equalised_odds"]] == sorted(r["gap"] for r in report["equalised_odds"])[::-1]


def test_subgroups_that_are_too_small_are_named_and_not_compared(judged: EvaluatedClasses) -> None:
    summary = summarize(judged, ["age:20"], 20)
    report = summary["gaps"]["age:20"]
    assert report["too_small"] == ["0 to under 20"]
    assert all("0 to under 20" in row["too_small"] for row in report["measures"])
    assert all("0 to under 20" not in row["values"] for row in report["measures"])
    lines = too_small_lines(report, summary["subgroups"]["age:20"])
    assert lines[0] == "too small to judge: 0 to under 20"
    assert "at least 20 groups" in lines[-1]
    assert "at least 10 groups with the class" in lines[-1]
    assert "0 to under 20" in [row["value"] for row in summary["subgroups"]["age:20"]]  # its metrics are still listed
    rare = np.where(np.arange(600) < 16, 2, judged.targets % 2)  # 8 patients have the third class
    few = EvaluatedClasses(judged.manifest, judged.groups, rare, judged.probabilities, judged.names, judged.answer)
    report = compare(few, split_subgroups(few.manifest, "sex"), 20)
    rows = {(row["measure"], row["class"]): row for row in report["measures"]}
    assert rows["sensitivity", "c"]["too_small"] == ["f", "m"]
    assert rows["sensitivity", "c"]["gap"] is None
    assert rows["false_positive_rate", "c"]["too_small"] == []
    assert report["classes"] == ["a", "b"]  # the macro AUROC is over the classes that can be compared
    assert {row["class"] for row in report["equalised_odds"]} == {"a", "b"}


def test_small_subgroups_get_one_line_with_their_groups_and_no_table() -> None:
    manifest = build(site=["x"] * 40 + ["y"] * 19 + [None], group=[str(i) for i in range(60)])
    values = EvaluatedValues(manifest, manifest.units(), {"dice": np.linspace(0.5, 0.9, 60)}, lambda rows: {})
    summary = summarize(values, ["site"], 20)
    line = (
        "no subgroups are compared: at least two of them need 20 groups each (patients, lesions or videos); x has 40, "
        "y has 19"
    )
    assert too_small_lines(summary["gaps"]["site"], summary["subgroups"]["site"]) == [line]
    page = "".join(build_subgroup_section({"task": "segment", **summary}))
    assert page.count("<table") == 1  # the metrics of the subgroups
    assert line in page
    assert "gap is the difference" not in page
    tables = _tables({**REPORT, **summary})
    assert [table.title for table in tables] == ["runs/seg on ssl, split test"]
    assert f"by site: {line}" in str(tables[0].caption)


def test_one_known_subgroup_gets_a_line() -> None:
    manifest = build(site=["x"] * 40 + [None] * 20, group=[str(i) for i in range(60)])
    values = EvaluatedValues(manifest, manifest.units(), {"dice": np.linspace(0.5, 0.9, 60)}, lambda rows: {})
    summary = summarize(values, ["site"], 20)
    assert too_small_lines(summary["gaps"]["site"], summary["subgroups"]["site"]) == [
        "no subgroups are compared: x is the only one, and at least two with 20 groups each (patients, lesions or "
        "videos) are needed"
    ]


def test_labels_that_may_occur_together_are_compared_without_their_unknown_cells(judged: EvaluatedClasses) -> None:
    rng = np.random.default_rng(1)
    targets = (rng.random((600, 2)) < 0.4).astype(float)
    targets[::5, 0] = np.nan
    scores = np.clip(0.3 * np.nan_to_num(targets) + 0.7 * rng.random((600, 2)), 0, 1)
    answer = Answer(multilabel=True, thresholds=(0.5, 0.6), columns=("x", "y"))
    evaluated = EvaluatedClasses(judged.manifest, judged.groups, targets, scores, ["x", "y"], answer)
    report = compare(evaluated, split_subgroups(evaluated.manifest, "sex"), 20)
    rows = {(row["measure"], row["class"]): row for row in report["measures"]}
    women = np.array(judged.manifest.column("sex")) == "f"
    known = women & ~np.isnan(targets[:, 0])
    sensitivity = (scores[known & (targets[:, 0] == 1), 0] >= 0.5).mean()
    assert rows["sensitivity", "x"]["values"]["f"] == pytest.approx(sensitivity)
    assert rows["auroc", "x"]["values"]["f"] == pytest.approx(roc_auc_score(targets[known, 0], scores[known, 0]))
    assert ("accuracy", None) not in rows


def test_masks_are_compared_by_their_mean_values_and_a_distance_is_worst_where_it_is_largest() -> None:
    rng = np.random.default_rng(0)
    site = np.array(["trunk", "face"] * 40)
    dice, distance = rng.random(80) * np.where(site == "face", 0.5, 1), rng.random(80) * np.where(site == "face", 9, 1)
    manifest = build(site=site.tolist())
    columns = {"dice": dice, "hd95_px": distance}
    masks = EvaluatedValues(manifest, manifest.units(), columns, lambda rows: {}, errors=("hd95_px",))
    report = compare(masks, split_subgroups(manifest, "site"), 20)
    assert [(row["worst"], row["best"]) for row in report["measures"]] == [("face", "trunk")] * 2
    assert report["measures"][1]["gap"] == pytest.approx(
        distance[site == "face"].mean() - distance[site == "trunk"].mean()
    )
    assert report["equalised_odds"] == []


def test_the_page_names_the_worst_subgroup_and_the_class_with_the_largest_gap(judged: EvaluatedClasses) -> None:
    result = {"task": "classify", **summarize(judged, ["sex", "sex*age:20"], 20)}
    page = "".join(build_subgroup_section(result))
    odds = largest_odds_gap(result["gaps"]["sex"])
    assert odds is not None
    assert f"Largest equalised odds difference: {odds[0].removeprefix('equalised odds: ')}" in page
    assert "By sex*age:20" in page
    assert "too small to judge: f, 0 to under 20, m, 0 to under 20" in page
