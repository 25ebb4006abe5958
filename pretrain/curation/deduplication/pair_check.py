"""Work of the check stages: counts the aligned points of pairs of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from dinomed.io.prefetch import prefetch
from dinomed.pretrain.curation.deduplication.keypoints import ImageKeypoints, count_matches, find_keypoints
from dinomed.pretrain.curation.runtime.images import reread_image

KEPT_POINTS = 128
"""Images whose points are held in memory; 0.6 MB each."""


@dataclass(frozen=True)
class CheckPairs:
    """Work of the stage: two lists of paths to a table with the column `matches`, the aligned points of each pair."""

    workers: int | None = None

    def __call__(self, pairs: tuple[Sequence[str], Sequence[str]]) -> pa.Table:
        points = lru_cache(KEPT_POINTS)(_points)

        def count(pair: tuple[str, str]) -> int:
            return count_matches(points(pair[0]), points(pair[1]))

        matches = list(prefetch(count, zip(*pairs, strict=True), self.workers))
        return pa.table({"matches": pa.array(matches, pa.int64())})


def _points(path: str) -> ImageKeypoints:
    return find_keypoints(reread_image(path))
