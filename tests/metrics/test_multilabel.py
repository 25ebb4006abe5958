"""Multilabel metrics against scikit-learn, with unknown truths, unknown labels and resamples."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, brier_score_loss, log_loss, roc_auc_score

from dinomed.metrics.multilabel import MultilabelPredictions, multilabel_metrics

NAMES = ["a", "b", "c"]


def sample(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((150, 3)) < [0.5, 0.2, 0.1]).astype(float)
    return targets, (1 / (1 + np.exp(-rng.normal(size=(150, 3)) - 2 * targets + 1))).round(2).clip(0.01, 0.99)


def test_the_values_equal_those_of_scikit_learn() -> None:
    targets, probabilities = sample()
    metrics = multilabel_metrics(targets, probabilities, NAMES, (0.5, None, 0.3))
    called = probabilities >= [0.5, 0.5, 0.3]
    assert metrics["auroc"] == pytest.approx(roc_auc_score(targets, probabilities), abs=1e-12)
    assert metrics["auprc"] == pytest.approx(average_precision_score(targets, probabilities), abs=1e-12)
    columns = range(3)
    balanced = np.mean([balanced_accuracy_score(targets[:, i], called[:, i]) for i in columns])
    assert metrics["balanced_accuracy"] == pytest.approx(balanced, abs=1e-12)
    brier = np.mean([brier_score_loss(targets[:, i], probabilities[:, i]) for i in columns])
    assert metrics["brier"] == pytest.approx(brier, abs=1e-12)
    assert metrics["nll"] == pytest.approx(np.mean([log_loss(targets[:, i], probabilities[:, i]) for i in columns]))
    assert metrics["exact_match"] == pytest.approx((called == targets).all(1).mean())
    assert [row["n"] for row in metrics["per_class"].values()] == targets.sum(0).tolist()


def test_an_unknown_truth_is_left_out_of_its_label_only() -> None:
    targets, probabilities = sample()
    partly = targets.copy()
    partly[:50, 1] = np.nan
    metrics, all_ = multilabel_metrics(partly, probabilities, NAMES), multilabel_metrics(targets, probabilities, NAMES)
    assert metrics["per_class"]["a"] == all_["per_class"]["a"]
    assert metrics["per_class"]["b"]["known"] == 100
    expected = roc_auc_score(targets[50:, 1], probabilities[50:, 1])
    assert metrics["per_class"]["b"]["auroc"] == pytest.approx(expected, abs=1e-12)


def test_labels_with_undefined_auroc_are_named() -> None:
    targets, probabilities = sample()
    targets[:, 0] = 1
    probabilities[:, 2] = np.nan
    metrics = multilabel_metrics(targets, probabilities, NAMES)
    assert metrics["undefined_auroc"] == ["a", "c"]
    assert metrics["auroc"] == pytest.approx(roc_auc_score(targets[:, 1], probabilities[:, 1]), abs=1e-12)
    assert np.isnan(metrics["per_class"]["a"]["specificity"])
    assert metrics["per_class"]["c"]["sensitivity"] == 0.0
    nothing = multilabel_metrics(np.full((4, 3), np.nan), probabilities[:4], NAMES)
    assert np.isnan([nothing["auroc"], nothing["ece"], nothing["balanced_accuracy"]]).all()


def test_a_resample_has_the_metrics_of_its_images() -> None:
    targets, probabilities = sample()
    targets[::7, 0] = np.nan
    counts = np.random.default_rng(1).integers(0, 3, (4, 150))
    together = MultilabelPredictions(targets, probabilities, NAMES).values(counts)
    for row, count in enumerate(counts):
        drawn = np.repeat(np.arange(150), count)
        alone = MultilabelPredictions(targets[drawn], probabilities[drawn], NAMES).values()
        for name, values in alone.items():  # the same sums in another order
            np.testing.assert_allclose(together[name][row], values[0], atol=1e-12, err_msg=name)
