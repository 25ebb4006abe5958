"""Classification metrics against scikit-learn, and the policy for undefined values."""

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from dinomed.metrics.classification import Predictions, classification_metrics

CLASSES = ["a", "b", "c"]


def predictions(seed: int = 0, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=[0.7, 0.2, 0.1])
    logits = rng.normal(size=(n, 3)) + 1.5 * np.eye(3)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_the_values_equal_those_of_scikit_learn() -> None:
    labels, probabilities = predictions()
    metrics = classification_metrics(labels, probabilities, CLASSES)
    predicted = probabilities.argmax(1)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, predicted), abs=1e-12)
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
    expected = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert metrics["auroc"] == pytest.approx(expected, abs=1e-12)  # the same sums in another order
    assert [row["n"] for row in metrics["per_class"].values()] == np.bincount(labels).tolist()
    assert metrics["undefined_auroc"] == []
    one_hot = np.eye(3)[labels]
    assert metrics["auprc"] == pytest.approx(
        average_precision_score(one_hot, probabilities, average="macro"), abs=1e-12
    )
    assert metrics["confusion"] == confusion_matrix(labels, predicted).tolist()
    assert metrics["nll"] == pytest.approx(log_loss(labels, probabilities), abs=1e-12)
    brier = sum(brier_score_loss(one_hot[:, k], probabilities[:, k]) for k in range(3))
    assert metrics["brier"] == pytest.approx(brier, abs=1e-12)
    for index, name in enumerate(CLASSES):
        row, actual, called = metrics["per_class"][name], labels == index, predicted == index
        assert row["precision"] == pytest.approx(precision_score(actual, called), abs=1e-12)
        assert row["recall"] == pytest.approx(recall_score(actual, called), abs=1e-12)
        assert row["specificity"] == pytest.approx(recall_score(~actual, ~called), abs=1e-12)


def test_a_resample_has_the_metrics_of_its_images() -> None:
    labels, probabilities = predictions()
    probabilities = probabilities.round(2)  # with ties
    counts = np.random.default_rng(1).integers(0, 4, (5, len(labels)))
    counts[4, labels == 2] = 0
    together = Predictions(labels, probabilities, CLASSES).values(counts)
    for row, count in enumerate(counts):
        drawn = np.repeat(np.arange(len(labels)), count)
        alone = Predictions(labels[drawn], probabilities[drawn], CLASSES).values()
        for name, values in alone.items():  # the same sums in another order
            np.testing.assert_allclose(together[name][row], values[0], atol=1e-12, err_msg=f"{name} of resample {row}")
    assert np.isnan(together["class_auroc"][4, 2])


def test_auroc_equals_counted_pairs() -> None:
    labels = np.array([0, 0, 1, 1])
    positive = np.array([0.1, 0.6, 0.4, 0.9])  # of four pairs (1 against 0) three are in order
    metrics = classification_metrics(labels, np.column_stack([1 - positive, positive]), ["no", "yes"])
    assert metrics["auroc"] == 0.75
    assert metrics["per_class"]["yes"]["auroc"] == 0.75
    assert metrics["per_class"]["yes"]["recall"] == 0.5
    assert metrics["confusion"] == [[1, 1], [1, 1]]


def test_an_absent_class_is_nan_named_and_left_out() -> None:
    labels, probabilities = predictions()
    seen = labels != 2
    metrics = classification_metrics(labels[seen], probabilities[seen], CLASSES)
    assert np.isnan(metrics["per_class"]["c"]["auroc"])
    assert np.isnan(metrics["per_class"]["c"]["recall"])
    assert metrics["undefined_auroc"] == ["c"]
    two = [metrics["per_class"][name]["auroc"] for name in "ab"]
    assert metrics["auroc"] == pytest.approx(np.mean(two), abs=1e-12)
    assert metrics["balanced_accuracy"] == pytest.approx(
        np.mean([metrics["per_class"][name]["recall"] for name in "ab"]), abs=1e-12
    )


def test_a_class_that_is_unknown_to_the_classifier_counts_as_wrong() -> None:
    labels, probabilities = predictions()
    unknown = probabilities.copy()
    unknown[:, 2] = np.nan
    metrics = classification_metrics(labels, unknown, CLASSES)
    assert metrics["per_class"]["c"]["recall"] == 0.0
    assert metrics["undefined_auroc"] == ["c"]
    assert np.isfinite(metrics["nll"])  # over the images of classes that it knows
    squared_errors = np.square(probabilities[:, :2] - np.eye(3)[labels][:, :2]).sum(1) + (labels == 2)
    assert metrics["brier"] == pytest.approx(
        squared_errors.mean(), abs=1e-12
    )  # the unknown class got a probability of 0
    right = (probabilities[:, :2].argmax(1) == labels).mean()
    assert metrics["accuracy"] == pytest.approx(right, abs=1e-12)


def test_auroc_of_a_single_class_is_nan_and_not_zero() -> None:
    labels, probabilities = predictions()
    metrics = classification_metrics(labels[labels == 0], probabilities[labels == 0], CLASSES)
    assert np.isnan(metrics["auroc"])
    assert metrics["undefined_auroc"] == CLASSES


def test_all_values_are_nan_without_images() -> None:
    metrics = classification_metrics(np.zeros(0, int), np.zeros((0, 3)), CLASSES)
    assert metrics["n"] == 0
    assert all(np.isnan(metrics[name]) for name in ("accuracy", "auroc", "auprc", "ece", "nll", "brier"))
    assert metrics["undefined_auroc"] == CLASSES


def test_probabilities_that_are_not_finite_are_refused() -> None:
    labels, probabilities = predictions()
    probabilities[3, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        classification_metrics(labels, probabilities, CLASSES)
