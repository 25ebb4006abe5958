"""Heads that are not trained by epochs: they look at the pooled features of all examples and solve for their weights.

Such a head subclasses `SolvedClassifier`. What it has to choose (k, C, a learning rate) it chooses on val by the macro
AUROC, which asks neither for a threshold nor for calibrated probabilities.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from scipy.special import logsumexp

from dinomed.adapters.adapter import Adapter
from dinomed.metrics.ranking import Ranking

CHOSEN_BY = "macro AUROC on val"
T = TypeVar("T")


@dataclass(frozen=True)
class Examples:
    """N examples: images, or groups of them.

    `targets` is int (N,) of classes, or float (N, L) of labels that do not exclude each other (0, 1, nan: not known).
    A class beyond those of training may occur in val; nothing can be right about it.
    """

    cls: np.ndarray  # float32 (N, blocks * C): class tokens
    mean: np.ndarray  # float32 (N, blocks * C): mean patch tokens
    targets: np.ndarray

    @property
    def multilabel(self) -> bool:
        return self.targets.ndim == 2

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Solution:
    """The adapter to keep (the one that was solved, or a plainer one that does the same), and what was chosen."""

    adapter: Adapter
    chosen: dict[str, Any]


class SolvedClassifier(Adapter):
    """A classifier that solves for its weights at once."""

    task = "classify"

    @abstractmethod
    def solve(self, train: Examples, val: Examples, weight: np.ndarray | None, seed: int) -> Solution:
        """Fit on `train`, choose on `val`.

        Args:
            weight: float (K,), what an example of each class counts; None where all count the same.
        """


def auroc_of_logits(targets: np.ndarray, logits: np.ndarray) -> float:
    """`macro_auroc` of the probabilities that (N, K) logits stand for.

    Of classes that exclude each other a logit alone says little, since what the others say of the same example is
    missing: a logistic regression chosen by logits was one that always gives the largest class.
    """
    scores = logits.astype(np.float64)
    return macro_auroc(targets, scores if targets.ndim == 2 else scores - logsumexp(scores, axis=1, keepdims=True))


def macro_auroc(targets: np.ndarray, scores: np.ndarray) -> float:
    """The mean AUROC over the columns of (N, K) probabilities, or of what ranks as they do, where it is defined, one
    against the rest; nan where nowhere."""
    values = []
    for index in range(scores.shape[1]):
        own = targets[:, index] if targets.ndim == 2 else (targets == index).astype(float)
        known = ~np.isnan(own)
        values.append(float(Ranking(own[known] == 1, scores[known, index]).auroc()[0]))
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def best_of(settings: Sequence[T], scores: Sequence[float]) -> tuple[int, T]:
    """The setting with the highest score and its place; of equals, and where none is defined, the first."""
    index = int(np.argmax(np.nan_to_num(np.asarray(scores, float), nan=-1.0)))
    return index, settings[index]
