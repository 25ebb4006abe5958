"""AUROC and average precision of many resamples at once: the scores are sorted once, then weights are summed.

A resample is a row of counts, how often each image was drawn; counts of 1 are the sample itself. Both measures depend
only on the order of the scores, which is the same in every resample.

Policy: AUROC is nan without a positive or without a negative image; average precision is nan without a positive one.
"""

import numpy as np

from dinomed.metrics.ratios import divide


class Steps:
    """N scores, sorted from the highest, with a value each; equal scores are one step.

    Args:
        scores: float (N,), finite.
        values: (N,).
    """

    def __init__(self, scores: np.ndarray, values: np.ndarray) -> None:
        assert values.shape == scores.shape, (values.shape, scores.shape)
        self.order = np.argsort(-scores, kind="stable")
        ordered = scores[self.order]
        self.starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.array([], int)
        self.thresholds = ordered[self.starts]
        self.values = values[self.order].astype(np.float64)

    def sums(self, counts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Count the images and sum their values at each distinct score, float64 (R, distinct scores) each.

        Args:
            counts: (R, N), how often each image counts; None counts each once, and R is 1.
        """
        drawn = np.ones((1, len(self.order))) if counts is None else counts[:, self.order].astype(np.float64)
        if not len(self.order):
            return np.zeros((len(drawn), 0)), np.zeros((len(drawn), 0))
        return np.add.reduceat(drawn, self.starts, axis=1), np.add.reduceat(drawn * self.values, self.starts, axis=1)


class Ranking(Steps):
    """N scores of one class, sorted from the highest; equal scores are one step.

    Args:
        positive: bool (N,).
        scores: float (N,), finite; a high score means positive.

    >>> ranking = Ranking(np.array([False, False, True, True]), np.array([0.1, 0.6, 0.4, 0.9]))
    >>> float(ranking.auroc()[0])
    0.75
    """

    def __init__(self, positive: np.ndarray, scores: np.ndarray) -> None:
        super().__init__(scores, positive)

    def steps(self, counts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Count positives and negatives at each distinct score, from the highest; float64 (R, distinct scores) each.

        Args:
            counts: (R, N), how often each image counts; None counts each once, and R is 1.
        """
        total, hits = self.sums(counts)
        return hits, total - hits

    def measures(self, counts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Compute `auroc` and `average_precision` together."""
        hits, false = self.steps(counts)
        return _auroc(hits, false), _average_precision(hits, false)

    def auroc(self, counts: np.ndarray | None = None) -> np.ndarray:
        """Compute the share of pairs (positive, negative) in the right order, where ties count half; float64 (R,)."""
        return _auroc(*self.steps(counts))

    def average_precision(self, counts: np.ndarray | None = None) -> np.ndarray:
        """Compute the mean precision over the positives, without interpolation, as in scikit-learn; float64 (R,)."""
        return _average_precision(*self.steps(counts))

    def roc(self) -> tuple[np.ndarray, np.ndarray]:
        """Return false and true positive rates at each threshold, from (0, 0) to (1, 1); nan where undefined."""
        hits, false = (np.r_[0.0, part[0].cumsum()] for part in self.steps())
        return divide(false, np.full_like(false, false[-1])), divide(hits, np.full_like(hits, hits[-1]))

    def precision_recall(self) -> tuple[np.ndarray, np.ndarray]:
        """Return recall (rising) and precision at each threshold; nan without a positive image."""
        hits, false = (part[0].cumsum() for part in self.steps())
        total = hits[-1] if len(hits) else 0.0
        return divide(hits, np.full_like(hits, total)), hits / np.maximum(hits + false, 1e-300)


def _auroc(hits: np.ndarray, false: np.ndarray) -> np.ndarray:
    before = hits.cumsum(axis=1) - hits / 2
    return divide(np.einsum("rt,rt->r", before, false), hits.sum(axis=1) * false.sum(axis=1))


def _average_precision(hits: np.ndarray, false: np.ndarray) -> np.ndarray:
    true = hits.cumsum(axis=1)
    precision = true / np.maximum(true + false.cumsum(axis=1), 1e-300)
    return divide(np.einsum("rt,rt->r", precision, hits), hits.sum(axis=1))
