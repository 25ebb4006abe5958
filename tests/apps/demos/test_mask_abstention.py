"""Abstention and unlike pictures in the tab Segment: what it says is what `dinomed predict` decides."""

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dinomed
from dinomed.adapters.inference.loader import load_adapter
from dinomed.apps.demos import launch
from dinomed.apps.demos.classify import ClassifyPanel
from dinomed.apps.demos.page import App, run_consumers
from dinomed.apps.demos.segment import SegmentPanel
from dinomed.errors import UsageError

SETTINGS = {"threshold": 0.5, "min_share": 0, "largest_only": False}


@pytest.fixture
def panel(user_folder: Path) -> SegmentPanel:
    return SegmentPanel(load_adapter(user_folder / "seg", backbone=user_folder / "ssl"))  # type: ignore[arg-type]


def test_the_tab_abstains_on_the_pictures_of_predict(user_folder: Path, panel: SegmentPanel, tmp_path: Path) -> None:
    images = sorted((user_folder / "lesions" / "images").iterdir())[::4]
    (tmp_path / "in").mkdir()
    for path in images:
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    options: dict[str, Any] = {"backbone": user_folder / "ssl", "abstain": 0.3, "sheet": False}
    dinomed.predict(user_folder / "seg", tmp_path / "in", tmp_path / "out", **options)
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert {row["abstained"] for row in rows.values()} == {"yes", "no"}
    launch._abstain([panel], 0.3, None)
    assert panel.rule is not None
    for path in images:
        (result,) = run_consumers([panel], str(path))
        assert not isinstance(result, str)
        shown = panel.answer(result.picture, result.answers, {})
        summary = panel.summarize(result.picture, result.answers, SETTINGS)
        assert summary is not None
        expected = rows[path.name]["abstained"]
        confidence = panel._confidence(result.answers)
        assert confidence == pytest.approx(1 - float(rows[path.name]["uncertainty"]), abs=2e-3)
        if abs(confidence - panel.rule.threshold) < 2e-3:  # the batch may change the last digit
            continue
        assert ("No answer: the model abstains." in shown["state"]) == (expected == "yes")
        assert ("The outline and its measures are no result." in shown["state"]) == (expected == "yes")
        assert summary.values["abstained"] == expected
        reason = f"No answer: confidence {confidence:.3g} is below {panel.rule.threshold:.3g} ("
        assert summary.text.startswith(reason) == (expected == "yes")
        assert ("No answer" in summary.text) == (expected == "yes")


def test_without_a_rule_nothing_is_said_about_abstention(user_folder: Path, panel: SegmentPanel) -> None:
    (result,) = run_consumers([panel], str(next((user_folder / "lesions" / "images").iterdir())))
    assert not isinstance(result, str)
    assert panel.answer(result.picture, result.answers, {})["state"] == ""
    summary = panel.summarize(result.picture, result.answers, SETTINGS)
    assert summary is not None
    assert "abstained" not in summary.values


def test_a_picture_unlike_the_training_images_is_named_in_the_tab_segment(panel: SegmentPanel, tmp_path: Path) -> None:
    board = np.indices((40, 48)).sum(axis=0) // 4 % 2
    Image.fromarray(np.array([[20, 255, 20], [200, 0, 255]], np.uint8)[board]).save(tmp_path / "odd.png")
    app = App([panel], [tmp_path / "odd.png"], "")
    (name,) = app.examples
    answer = app.answer({"path": name})["panels"]["segment"]
    assert answer["familiarity"]["unlike"] is True
    controls = panel.controls()
    assert 'class="dm-state"' in controls


def test_each_tab_has_its_own_threshold_and_one_without_is_named(
    user_folder: Path, panel: SegmentPanel, caplog: pytest.LogCaptureFixture
) -> None:
    classes = ClassifyPanel(load_adapter(user_folder / "cls", backbone=user_folder / "ssl"))  # type: ignore[arg-type]
    launch._abstain([classes, panel], 0.3, None)
    assert classes.rule is not None
    assert panel.rule is not None
    assert classes.rule.loss != panel.rule.loss
    panel.rule, panel.predictor.abstention = None, None  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING):
        launch._abstain([classes, panel], 0.3, None)
    assert panel.rule is None
    assert "the segmenter has no thresholds of confidence: tab Segment never abstains" in caplog.text
    with pytest.raises(UsageError, match="has no thresholds of confidence"):
        launch._abstain([panel], 0.3, None)
