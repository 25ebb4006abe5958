"""Work of the search stages: one part of the pairs above a threshold."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dinomed.pretrain.curation.search.exact import near_pairs
from dinomed.pretrain.curation.search.ivf import load_ivf
from dinomed.pretrain.curation.search.pairs import no_pairs


@dataclass(frozen=True)
class SearchPart:
    """Find one part (n, of) of the pairs above a threshold, within the vectors of a file (.npy) or from these to the
    vectors of `other`. The columns are those of `SimilarPairs.table`. With `index` the search is approximate."""

    vectors: str
    threshold: float
    k: int | None
    memory_gib: float
    other: str | None = None
    index: str | None = None
    workers: int | None = None

    def __call__(self, part: tuple[int, int]) -> pa.Table:
        x = np.load(self.vectors, mmap_mode="r")
        if self.k is None and self.other is None:  # a single image
            return no_pairs().table()
        if self.index is not None:
            assert self.k is not None
            searcher = load_ivf(self.index, x)
            pairs = searcher.near_pairs(threshold=self.threshold, k=self.k, memory_gib=self.memory_gib, part=part)
        else:
            y = None if self.other is None else np.load(self.other, mmap_mode="r")
            pairs = near_pairs(
                x, y, threshold=self.threshold, k=self.k, memory_gib=self.memory_gib, part=part, workers=self.workers
            )
        return pairs.table()
