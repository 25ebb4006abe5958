"""Risk-coverage curves and thresholds of confidence against plain loops."""

from pathlib import Path

import numpy as np
import pytest

from dinomed.adapters.evaluated import EvaluatedValues
from dinomed.adapters.evaluation.abstention import summarize_abstention
from dinomed.adapters.tasks.classify.answer import Answer, calibrate
from dinomed.adapters.tasks.classify.predict import ClassifyPredictor
from dinomed.adapters.tasks.segment.predict import mask_uncertainty
from dinomed.datasets.manifest import build_manifest
from dinomed.errors import UsageError
from dinomed.metrics.uncertainty.abstention import AbstentionTable, abstention_table, choose_rule
from dinomed.metrics.uncertainty.risk_coverage import RiskCoverage, summarize_curve


def areas(confidence: np.ndarray, losses: np.ndarray) -> float:
    """Mean over the predictions of the risk at the threshold of their own confidence."""
    return float(np.mean([losses[confidence >= own].mean() for own in confidence]))


def test_the_curve_and_its_area_are_those_of_a_loop_with_ties() -> None:
    rng = np.random.default_rng(0)
    confidence, losses = rng.integers(0, 15, 80) / 15, rng.random(80)
    curve = RiskCoverage(confidence, losses)
    assert curve.area()[0] == pytest.approx(areas(confidence, losses))
    coverage, risk = curve.points()
    expected = [((confidence >= t).mean(), losses[confidence >= t].mean()) for t in np.unique(confidence)[::-1]]
    np.testing.assert_allclose(np.stack([coverage, risk], axis=1), expected)
    counts = rng.integers(0, 3, (5, 80))
    for row, area in zip(counts, curve.area(counts), strict=True):
        drawn = np.repeat(np.arange(80), row)
        assert area == pytest.approx(areas(confidence[drawn], losses[drawn]))
    summary = summarize_curve(RiskCoverage(confidence, losses))
    assert summary["aurc_best"] <= summary["aurc"]
    assert summary["risk"]["1"] == summary["aurc_uninformed"] == pytest.approx(losses.mean())
    assert summarize_curve(RiskCoverage(np.ones(80), losses))["aurc"] == pytest.approx(losses.mean())  # no information
    assert summarize_curve(RiskCoverage(-losses, losses))["aurc"] == pytest.approx(summary["aurc_best"])


def test_thresholds_keep_the_stated_share_of_groups_or_the_stated_risk() -> None:
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 60, 200).tolist()
    confidence = np.round(rng.random(200), 2)
    losses = (rng.random(200) > confidence).astype(float)
    weights = 1 / np.array([groups.count(group) for group in groups])  # a group counts as one image
    table = abstention_table(confidence, losses, groups, "wrong")
    for threshold, coverage, risk in zip(table.thresholds, table.coverages, table.risks, strict=True):
        kept = confidence >= threshold
        assert coverage == pytest.approx(weights[kept].sum() / weights.sum())
        assert risk == pytest.approx(np.average(losses[kept], weights=weights[kept]))
    rule = choose_rule(table, abstain=0.2)
    assert rule is not None
    assert 0.8 <= rule.coverage < 0.83
    assert rule.abstains(confidence).tolist() == (confidence < rule.threshold).tolist()
    safe = choose_rule(table, max_risk=0.25)
    assert safe is not None
    assert safe.risk <= 0.25
    larger = [risk for threshold, risk in zip(table.thresholds, table.risks, strict=True) if threshold < safe.threshold]
    assert all(risk > 0.25 for risk in larger)
    everything = choose_rule(table, abstain=0)
    assert everything is not None
    assert everything.coverage == pytest.approx(1)
    assert AbstentionTable.model_validate_json(table.model_dump_json()) == table


def test_a_rule_that_cannot_be_kept_is_refused_in_one_line() -> None:
    table = AbstentionTable(
        loss="share of wrong classes", thresholds=(0.9, 0.5), coverages=(0.5, 1.0), risks=(0.1, 0.3)
    )
    assert choose_rule(table) is None
    for arguments, message in (
        ({"abstain": 1.0}, "`abstain=1`: give a share from 0 to below 1"),
        ({"abstain": -0.1}, "`abstain=-0.1`: give a share"),
        ({"abstain": float("nan")}, "`abstain=nan`: give a share"),
        ({"max_risk": 2.0}, "`max_risk=2`: give a share"),
        ({"max_risk": 0.05}, "the smallest risk .share of wrong classes. of any threshold is 0.1"),
        ({"abstain": 0.1, "max_risk": 0.1}, "exclude each other"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            choose_rule(table, **arguments)
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="has no thresholds of confidence; train a classifier or"):
        choose_rule(None, abstain=0.1)
    for damaged in ({"risks": (0.1,)}, {"thresholds": (0.5, 0.9)}, {"coverages": (1.0, 0.5)}):
        with pytest.raises(ValueError, match="thresholds"):
            AbstentionTable.model_validate(table.model_dump() | damaged)


def test_the_thresholds_of_a_classifier_are_measured_on_other_images() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    logits = (2 * np.eye(3)[labels] + 1.5 * rng.normal(size=(600, 3))).astype(np.float32)
    answer = calibrate(Answer(), logits[:300], labels[:300])
    assert answer.abstention is not None
    assert answer.abstention.loss == "share of wrong classes"
    names = {"image": [f"{i}.png" for i in range(300)], "sha256": [f"{i:064x}" for i in range(300)]}
    manifest = build_manifest(names, Path())
    z = logits[300:] / (answer.temperature or 1)
    probabilities = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    losses = answer.losses(probabilities, labels[300:])
    assert (losses == (probabilities.argmax(axis=1) != labels[300:])).all()
    evaluated = EvaluatedValues(
        manifest, manifest.units(), {"error": losses}, lambda rows: {}, errors=("error",),
        confidences={"p": answer.confidence(probabilities)}, abstention=answer.abstention,
    )  # fmt: skip
    report = summarize_abstention(evaluated, 50)
    assert report is not None
    assert report["curves"]["p"]["aurc"] < report["curves"]["p"]["aurc_uninformed"]
    for row in report["thresholds"]:
        kept = answer.confidence(probabilities) >= row["threshold"]
        assert row["coverage"] == pytest.approx(kept.mean())
        assert row["risk"] == pytest.approx(losses[kept].mean())
        assert row["coverage"] == pytest.approx(row["coverage_of_val"], abs=0.12)  # 3 deviations of 300 and 300 images
    evaluated.groups = [str(i // 4 if i < 200 else i) for i in range(300)]  # on val, too, a group counts as one image
    weights = np.r_[np.full(200, 0.25), np.ones(100)]
    by_group = summarize_abstention(evaluated, 50)
    assert by_group is not None
    for row in by_group["thresholds"]:
        kept = answer.confidence(probabilities) >= row["threshold"]
        assert row["coverage"] == pytest.approx(weights[kept].sum() / weights.sum())
        assert row["risk"] == pytest.approx(np.average(losses[kept], weights=weights[kept]))
    without = EvaluatedValues(manifest, manifest.units(), {"error": losses}, lambda rows: {}, errors=("error",))
    assert summarize_abstention(without, 10) is None


def test_labels_that_may_occur_together_lose_the_share_of_their_wrong_labels() -> None:
    answer = Answer(multilabel=True, thresholds=(0.5, 0.2), columns=("a", "b"))
    values = np.array([[0.9, 0.1], [0.4, 0.3]])
    targets = np.array([[1.0, 1.0, 0.0], [np.nan, 1.0, 1.0]])  # the last label is unknown to training
    assert answer.losses(values, targets).tolist() == [1 / 3, 1 / 2]
    assert answer.confidence(values).tolist() == [0.9, 0.3]  # b is present by its threshold, with a probability of 0.3


def test_the_uncertainty_in_the_table_is_that_of_the_thresholds() -> None:
    """`predict` abstains by the column, and the thresholds were chosen by `Answer.confidence`."""
    answer = Answer(multilabel=True, thresholds=(0.5, 0.2), columns=("a", "b"))
    predictor = ClassifyPredictor.__new__(ClassifyPredictor)
    predictor.answer = answer
    for row in np.random.default_rng(0).random((20, 2)):
        assert 1 - predictor.uncertainty(row) == pytest.approx(answer.confidence(row[None])[0])


def test_the_confidence_of_a_mask_is_the_dice_that_its_probabilities_expect() -> None:
    sure, doubtful = np.zeros((32, 32), np.float32), np.zeros((32, 32), np.float32)
    sure[8:24, 8:24], doubtful[8:24, 8:24] = 0.98, 0.6
    assert mask_uncertainty(sure, sure > 0.5) < 0.05 < mask_uncertainty(doubtful, doubtful > 0.5)
