"""Base of classifiers that are solved on the pooled features of all examples, not trained by epochs.

Such a head subclasses `SolvedClassifier`. It chooses its hyperparameter (k, C, a learning rate) on val by the macro
AUROC, which needs neither a threshold nor calibrated probabilities.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from scipy.special import logsumexp

from dinomed.adapters.adapter import Adapter
from dinomed.metrics.ranking import Ranking
from dinomed.metrics.ratios import defined_mean

CHOSEN_BY = "macro AUROC on val"
T = TypeVar("T")


@dataclass(frozen=True)
class Examples:
    """N examples: images, or groups of images.

    `targets` are class indices, int (N,), or labels of a multi-label task, float (N, L) of 0, 1 and nan (unknown). A
    class that training does not have may occur in val; every prediction for it is wrong.
    """

    cls: np.ndarray  # float32 (N, blocks * C): class tokens
    mean: np.ndarray  # float32 (N, blocks * C): mean patch tokens
    targets: np.ndarray

    @property
    def multilabel(self) -> bool:
        """Whether an example can have several labels."""
        return self.targets.ndim == 2

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Solution:
    """The adapter to keep (the solved one, or a simpler one that computes the same), and the chosen settings."""

    adapter: Adapter
    chosen: dict[str, Any]


class SolvedClassifier(Adapter):
    """A classifier whose weights are solved, not trained by epochs."""

    task = "classify"

    @abstractmethod
    def solve(self, train: Examples, val: Examples, weight: np.ndarray | None, seed: int) -> Solution:
        """Fit on `train` and choose settings on `val`.

        Args:
            weight: weight of the examples of each class, float (K,); None for equal weights.
        """


def auroc_of_logits(targets: np.ndarray, logits: np.ndarray) -> float:
    """Return the `macro_auroc` of the probabilities that belong to logits (N, K).

    For exclusive classes, logits must be normalised over the classes first: a logistic regression that was chosen by
    plain logits always predicted the largest class.
    """
    scores = logits.astype(np.float64)
    return macro_auroc(targets, scores if targets.ndim == 2 else scores - logsumexp(scores, axis=1, keepdims=True))


def macro_auroc(targets: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean one-against-rest AUROC over the columns of scores (N, K).

    Columns without a defined AUROC are left out; the result is nan if no column has one.
    """
    values = []
    for index in range(scores.shape[1]):
        column = targets[:, index] if targets.ndim == 2 else (targets == index).astype(float)
        known = ~np.isnan(column)
        values.append(float(Ranking(column[known] == 1, scores[known, index]).auroc()[0]))
    return defined_mean(values)


def best_of(settings: Sequence[T], scores: Sequence[float]) -> tuple[int, T]:
    """Return the index and the setting with the highest score; the first of equal scores, or if no score is defined."""
    index = int(np.argmax(np.nan_to_num(np.asarray(scores, float), nan=-1.0)))
    return index, settings[index]
