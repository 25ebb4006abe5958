"""The state of a pile while it is curated: who is still in, and why the others are not."""

from collections.abc import Iterable

import numpy as np

from dinomed.pretrain.curation.filters.quality import Quality, QualityConfig, judge
from dinomed.pretrain.curation.stages import FACTS


class Verdicts:
    """A reason for each of N images, None while it is in. The first reason stays."""

    def __init__(self, count: int) -> None:
        self.reason = np.full(count, None, object)

    @property
    def alive(self) -> np.ndarray:
        """bool (N,)"""
        return missing(self.reason)

    def drop(self, rows: np.ndarray, reason: str) -> None:
        """`rows`: a mask (N,) or row numbers."""
        chosen = np.zeros(len(self.reason), bool)
        chosen[rows] = True
        self.reason[chosen & self.alive] = reason


def missing(values: Iterable[object]) -> np.ndarray:
    """Which of N values are None, bool (N,)."""
    return np.fromiter((value is None for value in values), bool)


def judge_all(facts: dict[str, np.ndarray], config: QualityConfig) -> list[str | None]:
    """`judge` of every image; facts: the columns of `FACTS`, (N,) each."""
    columns = [facts[name].tolist() for name in FACTS]
    return [judge(Quality(*values), config) for values in zip(*columns, strict=True)]
