"""Check stages: verification of proposed pairs of images by matching keypoints."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from dinomed.datasets.manifest import Manifest
from dinomed.io.prefetch import prefetch
from dinomed.pretrain.curation.deduplication.keypoints import ImageKeypoints, count_matches, find_keypoints
from dinomed.pretrain.curation.runtime.cache import stage_key
from dinomed.pretrain.curation.runtime.context import CurationContext
from dinomed.pretrain.curation.runtime.images import reread_image
from dinomed.pretrain.curation.search.pairs import SimilarPairs

KEPT_KEYPOINTS = 128
"""Number of images whose keypoints are kept in memory; 0.6 MB per image."""


@dataclass(frozen=True)
class CheckPairs:
    """Function that the workers of a check stage run.

    It takes two lists of paths, and returns a table with the column `matches`: the number of matching keypoints of each
    pair.
    """

    workers: int | None = None

    def __call__(self, pairs: tuple[Sequence[str], Sequence[str]]) -> pa.Table:
        matches = list(match_pairs(zip(*pairs, strict=True), reread_image, self.workers))
        return pa.table({"matches": pa.array(matches, pa.int64())})


def match_pairs(
    pairs: Iterable[tuple[str, str]], read: Callable[[str], np.ndarray | None], workers: int | None
) -> Iterator[int]:
    """Yield the number of matching keypoints of each pair of paths, in order; 0 if `read` returns None for an image.

    Args:
        read: function from a path to the image, uint8 RGB (H, W, 3).
        workers: threads; None for one per processor.
    """

    @lru_cache(KEPT_KEYPOINTS)
    def keypoints(path: str) -> ImageKeypoints | None:
        image = read(path)
        return None if image is None else find_keypoints(image)

    def count(pair: tuple[str, str]) -> int:
        first, second = keypoints(pair[0]), keypoints(pair[1])
        return 0 if first is None or second is None else count_matches(first, second)

    yield from prefetch(count, pairs, workers)


def check_pairs(
    context: CurationContext, stage: str, pairs: SimilarPairs, manifest: Manifest, reference_manifest: Manifest,
    is_checked: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Count the matching keypoints of pairs; counts in the cache are not computed again.

    Args:
        stage: name of the stage in the cache.
        pairs: rows of `manifest` (i) and of `reference_manifest` (j).
        is_checked: bool (P,), the pairs to check.

    Returns:
        int64 (P,); -1 for pairs that were not checked.
    """
    matches = np.full(len(pairs), -1, np.int64)
    checked = np.flatnonzero(is_checked)
    if not len(checked):
        return matches
    items, sizes = [], []
    for start in range(0, len(checked), context.shard_size):
        shard = pairs.take(checked[start : start + context.shard_size])
        sides = ((manifest, shard.i.tolist()), (reference_manifest, shard.j.tolist()))
        paths = tuple([str(side.path(row)) for row in rows] for side, rows in sides)
        digests = [[side.column("sha256")[row] for row in rows] for side, rows in sides]
        items.append((f"{start // context.shard_size:06d}", stage_key("check", *digests), paths))
        sizes.append(len(shard))
    tables = context.compute_tables(stage, items, CheckPairs(context.workers), "checking pairs", sizes)
    matches[checked] = pa.concat_tables(tables)["matches"].to_numpy()
    return matches
