"""Metrics of multi-label classification: per label, and macro averages.

A target of nan is unknown: the image is left out of the metrics of that label only. AUROC and AUPRC of a label are
defined if some images have the label, some do not, and the classifier predicts the label (its probabilities are not all
nan). Macro averages use the labels for which the metric is defined; `undefined_auroc` lists the labels that are left
out. Sensitivity, specificity and precision are computed at a threshold (see `dinomed.metrics.operating`). They are nan
where the divisor is 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dinomed.metrics.calibration import calibration_errors
from dinomed.metrics.operating import operating_point
from dinomed.metrics.ranking import Ranking
from dinomed.metrics.ratios import divide, row_means

_SMALLEST = 1e-12


@dataclass(frozen=True)
class MultilabelPredictions:
    """N predictions of L labels.

    Args:
        targets: float (N, L) of 0, 1 and nan.
        probabilities: float (N, L), 0 to 1; all nan in the columns of labels that the classifier does not predict.
        classes: names of the L labels.
        thresholds: L thresholds; a label is predicted if its probability reaches the threshold. None means 0.5.
    """

    targets: np.ndarray
    probabilities: np.ndarray
    classes: Sequence[str]
    thresholds: Sequence[float | None] | None = None

    def __post_init__(self) -> None:
        expected = (len(self.targets), len(self.classes))
        assert self.targets.shape == self.probabilities.shape == expected, (
            self.targets.shape,
            self.probabilities.shape,
        )
        if not np.isfinite(self.probabilities[:, self.known]).all():
            raise ValueError("probabilities are not finite")

    @cached_property
    def known(self) -> np.ndarray:
        """Labels that the classifier predicts: bool (L,)."""
        if not len(self.targets):
            return np.ones(len(self.classes), bool)
        return ~np.isnan(self.probabilities).all(axis=0)

    def threshold(self, index: int) -> float:
        """Return the threshold of a label."""
        chosen = None if self.thresholds is None else self.thresholds[index]
        return 0.5 if chosen is None else float(chosen)

    @cached_property
    def parts(self) -> list[tuple[np.ndarray, Ranking] | None]:
        """For each label the rows with a known target and their ranking; None if the label is not predicted."""
        out: list[tuple[np.ndarray, Ranking] | None] = []
        for index, known in enumerate(self.known):
            rows = np.flatnonzero(~np.isnan(self.targets[:, index]))
            scores = self.probabilities[rows, index]
            out.append((rows, Ranking(self.targets[rows, index] == 1, scores)) if known else None)
        return out

    def values(self, counts: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Compute the metrics of R resamples at once, as in `dinomed.metrics.classification.Predictions.values`."""
        drawn = np.ones((1, len(self.targets))) if counts is None else counts
        columns: dict[str, list[np.ndarray]] = {name: [] for name in ("auroc", "auprc", "ece", "brier", "nll")}
        for index, part in enumerate(self.parts):
            if part is None:
                for values in columns.values():
                    values.append(np.full(len(drawn), np.nan))
                continue
            rows, ranking = part
            weights, positive, scores = drawn[:, rows], self.targets[rows, index], self.probabilities[rows, index]
            auroc, auprc = ranking.measures(weights)
            clipped = np.clip(scores, _SMALLEST, 1 - _SMALLEST)
            columns["auroc"].append(auroc)
            columns["auprc"].append(np.where(np.isnan(auroc), np.nan, auprc))
            columns["ece"].append(calibration_errors(scores, positive, weights))
            columns["brier"].append(_mean(weights, np.square(scores - positive)))
            columns["nll"].append(_mean(weights, -np.where(positive == 1, np.log(clipped), np.log(1 - clipped))))
        by_class = {f"class_{name}": np.stack(values, axis=1) for name, values in columns.items()}
        return {name.removeprefix("class_"): row_means(values) for name, values in by_class.items()} | by_class


def multilabel_metrics(
    targets: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    thresholds: Sequence[float | None] | None = None,
) -> dict[str, Any]:
    """Compute the metrics of N predictions of L labels; see `MultilabelPredictions` for the arguments.

    Returns:
        - `n`: number of images.
        - `auroc`, `auprc`, `ece`, `brier` (0 to 1), `nll` (nats), `balanced_accuracy` (mean of sensitivity and
          specificity): macro averages.
        - `exact_match`: share of images whose known labels are all predicted correctly.
        - `per_class`: for each label `n` (images with the label), `known` (images with a known target), `auroc`,
          `auprc`, `ece`, and the values of `operating_point`.
        - `undefined_auroc`: names of the labels without AUROC.
    """
    predictions = MultilabelPredictions(
        np.asarray(targets, float), np.asarray(probabilities, float), classes, thresholds
    )
    values = {name: value[0] for name, value in predictions.values().items()}
    per_class: dict[str, dict[str, Any]] = {}
    correct = np.ones(len(predictions.targets), bool)
    balanced = []
    for index, name in enumerate(classes):
        rows = np.flatnonzero(~np.isnan(predictions.targets[:, index]))
        positive = predictions.targets[rows, index] == 1
        scores = np.nan_to_num(predictions.probabilities[rows, index], nan=0.0)
        point = operating_point(positive, scores, predictions.threshold(index))
        correct[rows] &= (scores >= point["threshold"]) == positive
        balanced.append((point["sensitivity"] + point["specificity"]) / 2)
        per_class[name] = {
            "n": int(positive.sum()),
            "known": len(rows),
            **{key: float(values[f"class_{key}"][index]) for key in ("auroc", "auprc", "ece")},
            **point,
        }
    macro = {name: float(value) for name, value in values.items() if not name.startswith("class_")}
    return {
        "n": len(predictions.targets),
        **macro,
        "balanced_accuracy": float(row_means(np.array([balanced], float))[0]),
        "exact_match": float(correct.mean()) if len(correct) else float("nan"),
        "per_class": per_class,
        "undefined_auroc": [name for name, row in per_class.items() if np.isnan(row["auroc"])],
    }


def _mean(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    return divide(counts @ values, counts.sum(axis=1))
