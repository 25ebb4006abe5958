"""Prediction sets and the abstaining model in the tab Classify: what it says is what the core decides."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dinomed.adapters.inference.loader import load_adapter
from dinomed.adapters.tasks.classify.answer import Answer, SetLimit
from dinomed.adapters.tasks.classify.predict import ClassProbabilities
from dinomed.apps.demos import launch
from dinomed.apps.demos.classify import ClassifyPanel
from dinomed.apps.demos.explore.panel import ExplorePanel
from dinomed.errors import UsageError
from dinomed.metrics.uncertainty.abstention import AbstentionRule, abstention_table
from dinomed.metrics.uncertainty.cross_conformal import cross_limits

CLASSES = ("nevus", "melanoma", "other")
RULE = AbstentionRule(threshold=0.7, coverage=0.8, risk=0.05, loss="wrong class")


def panel_of(answer: Answer) -> ClassifyPanel:
    backbone = SimpleNamespace(preprocessing=None)
    predictor: Any = SimpleNamespace(
        answer=answer, backbone=backbone, check=None, classes=CLASSES, abstention=None, unit="image",
        predicted=lambda row: CLASSES[int(row.argmax())], describe=lambda row: CLASSES[int(row.argmax())],
    )  # fmt: skip
    return ClassifyPanel(predictor)


def output(confidence: float, held: tuple[str, ...] | None) -> ClassProbabilities:
    rest = (1 - confidence) / 2
    return ClassProbabilities(zip(CLASSES, (confidence, rest, rest), strict=True), confidence, held)


def shown(panel: ClassifyPanel, answer: ClassProbabilities) -> str:
    page: str = panel.answer(None, [answer], {})["html"]  # type: ignore[arg-type]
    return page


def test_the_set_is_shown_with_its_coverage() -> None:
    panel = panel_of(Answer(sets=SetLimit(coverage=0.9, limit=0.2, groups=40)))
    page = shown(panel, output(0.6, ("nevus", "melanoma")))
    assert "One of: nevus, melanoma." in page
    assert (
        "Over all images, sets of any size hold the right class in about 90%, and miss it in about 10 of 100." in page
    )
    assert "calibrated on 40 groups of validation images" in page
    single = shown(panel, output(0.9, ("nevus",)))
    assert "Prediction set of one class: nevus." in single
    assert "It is not the probability that this set is right. Sets of one class" in single  # coverage is marginal
    assert 'id="abstained"' not in page  # no rule was asked for
    values = panel.summarize(None, [output(0.6, ("nevus", "melanoma"))], {}).values  # type: ignore[arg-type]
    assert values["prediction_set"] == "nevus|melanoma"
    assert "abstained" not in values


def test_a_set_that_holds_all_classes_says_why_and_an_ensemble_promises_nothing() -> None:
    page = shown(panel_of(Answer(sets=SetLimit(coverage=0.9, limit=0, groups=4))), output(0.6, CLASSES))
    assert "No class can be ruled out: val has 4 groups, and 9 are needed for a coverage of 0.9." in page
    assert "One of" not in page
    folds = [np.array([0.9, 0.8]), np.array([0.7, 0.6])]
    limits = cross_limits(folds, [["a", "b"], ["c", "d"]], 0.6)
    page = shown(panel_of(Answer(cross=limits)), output(0.6, ("nevus",)))
    assert "The coverage of ensembles is not guaranteed. It is not the probability that this set is right." in page
    assert "prediction-set" not in shown(panel_of(Answer()), output(0.6, None))


def test_the_model_abstains_below_its_threshold_and_the_rule_is_stated() -> None:
    panel = panel_of(Answer())
    panel.abstain_by(RULE)
    page = shown(panel, output(0.69, None))
    assert "No answer: the model abstains. Its confidence of 0.69 is below 0.7" in page
    assert "keeps 80% of the validation images, with a mean loss of 0.050 (wrong class)" in page
    assert 'id="abstained"' not in shown(panel, output(0.7, None))
    for confidence, cell in ((0.69, "yes"), (0.7, "no")):
        summary = panel.summarize(None, [output(confidence, None)], {})  # type: ignore[arg-type]
        assert summary.values["abstained"] == cell
        assert summary.text.startswith("No answer") == (cell == "yes")


def test_the_options_choose_the_rule_of_predict_or_are_refused() -> None:
    panel = panel_of(Answer())
    with pytest.raises(UsageError, match="the adapter has no thresholds of confidence"):
        launch._abstain([panel], 0.2, None)
    confidence = np.linspace(0.5, 1, 20)
    table = abstention_table(confidence, np.zeros(20), range(20), "wrong class")
    panel.predictor.abstention = table
    launch._abstain([panel], 0.2, None)
    assert panel.rule == table.at_coverage(0.8)
    with pytest.raises(UsageError, match="are for a classifier and a segmenter"):
        launch._abstain([object.__new__(ExplorePanel)], 0.2, None)
    panel.predictor.unit = "group"
    with pytest.raises(UsageError, match="the demo predicts single images; leave --abstain and --max-risk out"):
        launch._abstain([panel], 0.2, None)


def test_sets_and_confidences_are_those_of_predict(user_folder: Path) -> None:
    predictor: Any = load_adapter(user_folder / "cls")
    images = sorted((user_folder / "lesions" / "images").iterdir())[:6]
    for path, prediction in zip(images, predictor.predict(images), strict=True):
        made = predictor.output_of_image(predictor.preprocessing.read(path))
        assert made.prediction_set == prediction.prediction_set
        assert made.prediction_set
        assert made.confidence == pytest.approx(max(prediction.probabilities.values()), abs=1e-5)
        page = shown(ClassifyPanel(predictor), made)
        assert re.search("prediction-set", page)
