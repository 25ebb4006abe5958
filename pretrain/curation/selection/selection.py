"""The selection of a curation: the reason for which each image was selected, and what each set contributed."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dinomed.pretrain.curation.pool import Pool
from dinomed.pretrain.curation.selection.contribution import SetContribution

CACHE_STAGE = "retrieve"


@dataclass
class Selection:
    """Selected images of a pool; arrays of (N,) as in `output.read.ROWS`.

    Attributes:
        source: mode that selected an image, else None.
        retrieved_for: name of the query set that an image belongs to or was retrieved for, else None.
        cluster: int64, cluster of an image; -1 without one.
        unlike: float32, cosine to the most similar query image, where it was computed; else nan.
        points: float32 (N, 2), two principal components of the embedding, for the map of the report; nan without one.
        contributions: one for each set and mode.
        record: for the summary.
    """

    source: np.ndarray
    retrieved_for: np.ndarray
    cluster: np.ndarray
    unlike: np.ndarray
    points: np.ndarray
    contributions: list[SetContribution]
    record: dict[str, Any] = field(default_factory=lambda: {"embedding": None})

    @classmethod
    def of(cls, pool: Pool, queries: np.ndarray) -> "Selection":
        """Select the query images at the rows `queries`. An image of several query sets belongs to the first."""
        count = len(pool)
        source, retrieved_for = np.full(count, None, object), np.full(count, None, object)
        source[queries] = "as is"
        for query_set in reversed(pool.query_sets):
            retrieved_for[np.intersect1d(query_set.rows, queries)] = query_set.name
        contributions = [
            SetContribution(
                query_set.name, "as is", len(query_set.rows), len(query_set.rows),
                int(np.equal(retrieved_for[queries], query_set.name).sum()),
            )
            for query_set in pool.query_sets
        ]  # fmt: skip
        return cls(
            source, retrieved_for, np.full(count, -1, np.int64), np.full(count, np.nan, np.float32),
            np.full((count, 2), np.nan, np.float32), contributions,
        )  # fmt: skip
