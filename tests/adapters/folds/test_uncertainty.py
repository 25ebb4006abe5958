"""Prediction sets and abstention of an ensemble, whose thresholds were chosen out of fold."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dinomed
from dinomed.adapters.folds.train import FoldsResult, train_folds
from dinomed.adapters.inference.ensemble.record import read_ensemble
from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.task import find_task
from dinomed.adapters.tasks.classify.answer import Answer, mean_logits
from dinomed.adapters.tasks.classify.config import ClassifyConfig
from dinomed.apps.demos.classify import ClassifyPanel
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError
from dinomed.features.compute import Features


def rows_of(folder: Path, images: list[Path]) -> np.ndarray:
    return np.array([list(each.probabilities.values()) for each in load_adapter(folder).predict(images)])


def test_sets_and_confidence_are_those_of_the_formula(ensemble: FoldsResult, manifest: Manifest) -> None:
    images = list(map(manifest.path, range(len(manifest))))
    members = np.stack([rows_of(folder, images) for folder in ensemble.members])
    predictor: Any = load_adapter(ensemble.folder)
    evaluated: Any = ensemble.out_of_fold
    limits = predictor.answer.cross
    assert limits.coverage == 0.9
    assert limits.problem is None
    of_label = evaluated.probabilities[np.arange(len(evaluated.targets)), evaluated.targets]
    sizes = [evaluated.groups.count(group) for group in evaluated.groups]
    weights = 1 / ((len(set(evaluated.groups)) + 1) * np.array(sizes))
    folds = np.repeat(range(3), [each["n"] for each in ensemble.table["by_fold"]])
    above = np.zeros(members.shape[1:])
    for k, value, weight in zip(folds, of_label, weights, strict=True):
        above += weight * (value > members[k])
    expected = above < 0.9 - 1e-9
    expected[np.arange(len(images)), members.mean(axis=0).argmax(axis=1)] = True
    predictions = predictor.predict(images)
    sets = [[name in each.prediction_set for name in predictor.classes] for each in predictions]
    assert np.array_equal(sets, expected)
    assert expected.sum() < expected.size  # some set leaves a class out
    pixels = predictor.preprocessing.stack([np.full((40, 40, 3), value, np.uint8) for value in (20, 200)])
    rows = predictor.rows(pixels)
    values = np.stack([member.probability_rows(pixels) for member in predictor.members])
    of_class = values[:, [0, 1], rows.probabilities.argmax(axis=1)]
    assert rows.confidence == pytest.approx(np.median(of_class, axis=0), abs=1e-6)  # six decimals


@pytest.mark.parametrize("multilabel", [False, True])
def test_members_that_disagree_make_an_ensemble_unsure(
    multilabel: bool, ensemble: FoldsResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor: Any = load_adapter(ensemble.folder)
    members = torch.full((3, 1, 3), 0.005)
    members[range(3), 0, range(3)] = 0.99  # each member is sure of another class
    plain = Answer(multilabel=multilabel)
    for each in (predictor, *predictor.members):
        each.answer = plain
    predictor.adapter.combine = partial(mean_logits, [plain] * 3)
    logits = members.logit() if multilabel else members.log()
    monkeypatch.setattr(predictor.adapter, "logits_of_members", lambda features: list(logits))
    features = Features(torch.zeros(1, 1), torch.zeros(1, 1))
    rows = predictor.rows_of_features(features)
    assert rows.probabilities == pytest.approx(np.full((1, 3), 1 / 3), abs=1e-6)
    # One class: two of three members gave it 0.005. Labels: no label is predicted, and each member is sure of one.
    assert rows.confidence == pytest.approx([0.01 if multilabel else 0.005], abs=1e-6)
    (output,) = predictor.outputs_of_features(features, [])
    assert output.confidence == rows.confidence[0]
    shown = ClassifyPanel(predictor).summarize(None, [output], {})  # type: ignore[arg-type]
    assert shown.uncertainty == 1 - output.confidence


def test_predict_abstains_with_the_threshold_of_the_folds(
    ensemble: FoldsResult, manifest: Manifest, tmp_path: Path
) -> None:
    result = dinomed.predict(ensemble.folder, manifest, tmp_path / "out", abstain=0.3)
    answer = load_adapter(ensemble.folder).answer  # type: ignore[attr-defined]
    rule = answer.abstention.at_coverage(0.7)
    assert result.rule == rule
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    confidence = np.array([float(row["confidence"]) for row in rows])
    assert [row["abstained"] == "yes" for row in rows] == rule.abstains(confidence).tolist()
    assert 0 < result.abstained < len(rows)
    evaluated: Any = ensemble.out_of_fold
    known = answer.confidence(evaluated.probabilities)
    weights = 1 / np.array([evaluated.groups.count(group) for group in evaluated.groups])
    assert (weights * ~rule.abstains(known)).sum() / weights.sum() == pytest.approx(rule.coverage)
    assert rule.coverage >= 0.7
    assert all(row["prediction_set"] for row in rows)


def test_evaluate_measures_the_sets_and_the_thresholds_of_an_ensemble(
    ensemble: FoldsResult, manifest: Manifest, tmp_path: Path
) -> None:
    report = dinomed.evaluate(ensemble.folder, manifest, out=tmp_path / "report")
    sets = report["prediction_sets"]
    assert (sets["target"], sets["limit"], sets["problem"]) == (0.9, None, None)
    assert sets["groups_of_val"] == load_adapter(ensemble.folder).answer.cross.groups  # type: ignore[attr-defined]
    assert 0 <= sets["coverage_low"] <= sets["coverage"] <= sets["coverage_high"] <= 1
    assert report["abstention"]["thresholds"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "were predicted out of fold (CV+)" in page
    card = (ensemble.folder / "card.md").read_text()
    assert "comparison with images out of fold (CV+; no guarantee, because members were selected on their fold)" in card
    assert "No abstention" not in card
    record = read_ensemble(ensemble.folder).adapter
    record.usage["cross"]["groups"] = 8
    rows = dict(find_task("classify").card_rows(record))
    assert rows["prediction sets"].startswith("hold all classes: the folds have 8 groups, and 9 are needed")


def test_an_ensemble_for_groups_has_neither_and_says_so(
    backbone: FrozenBackbone, manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    config = ClassifyConfig.model_validate({"unit": "group", "head": {"name": "logistic"}})
    result = train_folds(backbone, manifest, tmp_path / "cls", config, 2, cache=cache)
    assert set(read_ensemble(result.folder).adapter.training["left_out"]) == {"abstention", "prediction sets"}
    with pytest.raises(UsageError, match="an ensemble has none: give one of its members, such as fold_1"):
        dinomed.predict(result.folder, manifest, tmp_path / "out", unit="group", abstain=0.1)
