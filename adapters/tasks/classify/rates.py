"""Measures of a classifier that can be compared between subgroups: error rates of each class, AUROC and calibration.

Equalised odds (Hardt et al. 2016, section 2) holds if sensitivity and false positive rate at a threshold are equal in
all subgroups. Each class is compared with the rest, at its threshold from val.

Policy:
- AUPRC, precision and macro values over different classes depend on the frequencies of classes, which differ between
  subgroups; they are not compared. The macro AUROC and the balanced accuracy use only the classes that have enough
  groups with and without the class in every compared subgroup.
- Accuracy, Brier score and log loss depend on the mix of classes too; they are compared, because users expect them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinomed.adapters.evaluated import MIN_CASES, MIN_GROUPS, SubgroupMeasures
from dinomed.metrics.bootstrap import Statistic
from dinomed.metrics.classification import Predictions
from dinomed.metrics.multilabel import MultilabelPredictions
from dinomed.metrics.ratios import divide

RATES = ("auroc", "sensitivity", "false_positive_rate")
"""The measures of a class."""


@dataclass(frozen=True)
class ClassTable:
    """Predictions of N units, of which subgroups are compared.

    Attributes:
        targets: int (N,), or float (N, C) of 0, 1 and nan.
        probabilities: float (N, C); nan in the columns of classes that the classifier does not know.
        names: the C classes.
        thresholds: threshold of each class, or None.
        groups: group of each unit.
    """

    targets: np.ndarray
    probabilities: np.ndarray
    names: Sequence[str]
    thresholds: Sequence[float | None]
    groups: Sequence[str]

    @property
    def positive(self) -> np.ndarray:
        """Whether a unit has a class: float (N, C) of 0, 1 and nan (unknown)."""
        return self.targets if self.targets.ndim == 2 else np.eye(len(self.names))[self.targets]

    def count_cases(self, rows: Sequence[int]) -> np.ndarray:
        """Count the groups with and without each class among some units, int (2, C)."""
        names, positive = np.array([self.groups[row] for row in rows]), self.positive[list(rows)]
        return np.array([[len(set(names[column == side])) for column in positive.T] for side in (1, 0)])

    def measures(self, subgroups: Sequence[Sequence[int]]) -> SubgroupMeasures:
        """Return the measures of `subgroups`, lists of units, as `EvaluatedUnits.subgroup_measures` does."""
        compared = [index for index, value in enumerate(self.thresholds) if value is not None]
        cases = np.stack([self.count_cases(rows) for rows in subgroups])  # (S, 2, C)
        large = np.array([len({self.groups[row] for row in rows}) >= MIN_GROUPS for rows in subgroups])
        enough = (cases >= MIN_CASES) & large[:, None, None]
        both = enough.all(axis=1)[:, compared]
        able = both.any(axis=1)  # subgroups in which some class can be judged
        common = [compared[i] for i in np.flatnonzero(both[able].all(axis=0))] if able.any() else []
        means = ["auroc"] if self.targets.ndim == 2 else ["auroc", "balanced_accuracy"]
        overall = ["ece", "brier", "nll"] if self.targets.ndim == 2 else ["accuracy", "ece", "brier", "nll"]
        names: list[tuple[str, str | None]] = [(name, None) for name in (*means, *overall)]
        names += [(rate, self.names[index]) for index in compared for rate in RATES]
        judged = [able & bool(common)] * len(means) + [large] * len(overall)
        for index in compared:
            judged += [enough[:, :, index].all(axis=1), enough[:, 0, index], enough[:, 1, index]]
        return SubgroupMeasures(
            names,
            np.array([name in ("ece", "brier", "nll", "false_positive_rate") for name, _ in names]),
            [self._statistic(rows, compared, common, means, overall) for rows in subgroups],
            np.stack(judged, axis=1),
            [self.names[index] for index in common],
            {self.names[index]: float(self.thresholds[index] or 0.0) for index in compared},
        )

    def _statistic(
        self, rows: Sequence[int], compared: list[int], common: list[int], means: list[str], overall: list[str]
    ) -> Statistic:
        picked = list(rows)
        kind = MultilabelPredictions if self.targets.ndim == 2 else Predictions
        predictions = kind(self.targets[picked], self.probabilities[picked], self.names)
        positive, probabilities = self.positive[picked][:, compared], self.probabilities[picked][:, compared]
        limits = np.array([self.thresholds[index] for index in compared], float)
        alarm = (np.nan_to_num(probabilities, nan=-1.0) >= limits).astype(float)
        present, absent = (positive == 1).astype(float), (positive == 0).astype(float)

        def values(counts: np.ndarray) -> np.ndarray:
            metrics = predictions.values(counts)
            undefined = np.full(len(counts), np.nan)
            sources = {"auroc": "class_auroc", "balanced_accuracy": "class_recall"}
            columns = [metrics[sources[name]][:, common].mean(axis=1) if common else undefined for name in means]
            columns += [metrics[name] for name in overall]
            sensitivity = divide(counts @ (alarm * present), counts @ present)
            false_rate = divide(counts @ (alarm * absent), counts @ absent)
            for place, index in enumerate(compared):
                columns += [metrics["class_auroc"][:, index], sensitivity[:, place], false_rate[:, place]]
            return np.stack(columns, axis=1)

        return values
