"""Predicted class probabilities with their labels, and the metrics computed from them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinomed.adapters.evaluated import EvaluatedUnits, SubgroupMeasures, join_manifests
from dinomed.adapters.fitting.data import widen
from dinomed.adapters.tasks.classify.answer import Answer, SetLimit
from dinomed.adapters.tasks.classify.rates import ClassTable
from dinomed.datasets.manifest import Manifest
from dinomed.metrics.bootstrap import RESAMPLES, Statistic, bootstrap_mean
from dinomed.metrics.calibration import log_losses
from dinomed.metrics.classification import Predictions, classification_metrics
from dinomed.metrics.multilabel import MultilabelPredictions, multilabel_metrics
from dinomed.metrics.operating import operating_point
from dinomed.metrics.uncertainty.conformal import set_metrics

CONFIDENCE = "probability of the prediction"
"""Name of the confidence of a classifier; of an ensemble it is the median over its members."""


@dataclass
class EvaluatedClasses(EvaluatedUnits):
    """Evaluated units with class probabilities.

    Args:
        targets: labels, as in `dinomed.adapters.heads.solved.solve.Examples`.
        probabilities: float (N, K) of the K classes of the classifier.
        names: the K classes, then the classes that occur only in these targets.
        answer: settings of the prediction: exclusive or multilabel, temperature, thresholds.
        confidence: float (N,), how sure each prediction is, if the probabilities do not determine it (an ensemble).
        sets: bool (N, K), the prediction sets of an ensemble.
    """

    manifest: Manifest
    groups: list[str]
    targets: np.ndarray
    probabilities: np.ndarray
    names: list[str]
    answer: Answer
    errors: Collection[str] = ("ece", "brier", "nll")
    confidence: np.ndarray | None = None
    sets: np.ndarray | None = None

    def __post_init__(self) -> None:
        confidence = self.confidence
        if confidence is None and len(self.probabilities):
            confidence = self.answer.confidence(self.probabilities)
        self.confidences = {} if confidence is None else {CONFIDENCE: confidence}
        self.losses, self.loss_name = self.answer.losses(self.probabilities, self.targets), self.answer.loss_name
        self.abstention = self.answer.abstention
        self.wide = widen(self.probabilities, len(self.names))  # (N, len(names)); nan for classes without a probability
        self.headline = ("auroc", "auprc", "ece", "brier", "nll")
        if self.answer.multilabel:
            filled = np.nan_to_num(self.wide)
            of_target = np.where(np.isnan(self.targets), np.nan, np.where(self.targets == 1, filled, 1 - filled))
            self.scores = np.nan_to_num(np.nanmean(of_target, axis=1)) if len(of_target) else np.zeros(0)
        else:
            self.headline = ("auroc", "balanced_accuracy", "accuracy", *self.headline[1:])
            self.scores = np.exp(-np.nan_to_num(log_losses(self.targets, self.wide), nan=np.inf))

    @property
    def thresholds(self) -> list[float | None]:
        """Threshold of each class, chosen on val; None for a class that occurs only in these targets."""
        return [*self.answer.thresholds, *[None] * len(self.names)][: len(self.names)]

    def metrics(self, rows: Sequence[int]) -> dict[str, Any]:
        picked = list(rows)
        if self.answer.multilabel:
            return multilabel_metrics(self.targets[picked], self.wide[picked], self.names, self.thresholds)
        return classification_metrics(self.targets[picked], self.wide[picked], self.names)

    def statistic(self, rows: Sequence[int]) -> Statistic:
        picked = list(rows)
        kind = MultilabelPredictions if self.answer.multilabel else Predictions
        predictions = kind(self.targets[picked], self.wide[picked], self.names)
        return lambda counts: np.stack([predictions.values(counts)[name] for name in self.headline], axis=1)

    def subgroup_measures(self, subgroups: Sequence[Sequence[int]]) -> SubgroupMeasures:
        return ClassTable(self.targets, self.wide, self.names, self.thresholds, self.groups).measures(subgroups)

    def details(self, resamples: int = RESAMPLES) -> dict[str, Any]:
        return {
            "operating": self.operating_points(resamples),
            "temperature": self.answer.temperature,
            "prediction_sets": self.measure_sets(resamples),
        }

    def describe_unit(self, unit: int, titles: Mapping[str, str]) -> str:
        probabilities = np.nan_to_num(self.wide[unit], nan=-1.0)
        if self.answer.multilabel:
            labels = [name for name, value in zip(self.names, self.targets[unit], strict=True) if value == 1]
            predicted = [
                f"{name} {value:.2f}"
                for name, value, threshold in zip(self.names, probabilities, self.thresholds, strict=True)
                if value >= (0.5 if threshold is None else threshold)
            ]
            return f"label: {', '.join(labels) or 'none'}; predicted: {', '.join(predicted) or 'none'}"
        best = int(probabilities.argmax())
        label = self.names[int(self.targets[unit])]
        return f"label: {label}; predicted: {self.names[best]} {probabilities[best]:.2f}"

    def positives(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the units whose label for a class is known, int (M,), and whether it is positive, bool (M,)."""
        labels = self.targets[:, index] if self.targets.ndim == 2 else (self.targets == index).astype(float)
        rows = np.flatnonzero(~np.isnan(labels))
        return rows, labels[rows] == 1

    def measure_sets(self, resamples: int = RESAMPLES) -> dict[str, Any] | None:
        """Return the coverage and the size of the prediction sets over groups; None for an adapter without sets.

        The entries are those of `dinomed.metrics.uncertainty.conformal.set_metrics`, and the `target` coverage, the
        `limit` (None for an ensemble, which has one for each member and class), the number of groups of val (of the
        folds of an ensemble) on which it was chosen, and `problem`, why the sets hold all classes.
        """
        limit = self.answer.cross or self.answer.sets
        if limit is None or not len(self.probabilities):
            return None
        sets = self.answer.prediction_sets(self.probabilities) if self.sets is None else self.sets
        assert sets is not None
        return {
            "target": limit.coverage,
            "limit": limit.limit if isinstance(limit, SetLimit) else None,
            "groups_of_val": limit.groups,
            "problem": limit.problem,
            **set_metrics(self.targets, sets, self.groups, self.names, resamples=resamples),
        }

    def operating_points(self, resamples: int = RESAMPLES) -> dict[str, dict[str, Any]]:
        """Return the one-against-rest metrics of each class at its threshold from val, with intervals."""
        points = {}
        for index, (name, threshold) in enumerate(zip(self.names, self.thresholds, strict=True)):
            if threshold is None:
                continue
            rows, positive = self.positives(index)
            scores = self.wide[rows, index]
            predicted = (scores >= threshold).astype(float)
            columns = np.stack(
                [np.where(positive, predicted, np.nan), np.where(positive, np.nan, 1 - predicted)], axis=1
            )
            intervals = bootstrap_mean(columns, [self.groups[i] for i in rows], resamples=resamples)
            points[name] = operating_point(positive, scores, threshold) | {
                f"{side}_{end}": getattr(interval, end)
                for side, interval in zip(("sensitivity", "specificity"), intervals, strict=True)
                for end in ("low", "high")
            }
        return points


def join_classes(parts: Sequence[EvaluatedClasses]) -> EvaluatedClasses:
    """Join the units of several evaluations of classifiers with the same classes, which know all classes of the
    targets; the answer is that of the first one, without what was chosen on its val."""
    first = parts[0]
    plain = first.answer.model_copy(
        update={"thresholds": (), "sets": None, "cross": None, "abstention": None, "temperature": None}
    )
    assert all(part.names == first.names for part in parts), "each class is in train of every fold"
    return EvaluatedClasses(
        join_manifests([part.manifest for part in parts]),
        [group for part in parts for group in part.groups],
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
        first.names,
        plain,
    )
