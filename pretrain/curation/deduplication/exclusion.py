"""Copies within a pile, and copies of evaluation images in it (DINOv2, section 3 and appendix A).

Both take the pairs that a search found, so that whoever drives them decides where the search runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinomed.errors import UsageError
from dinomed.pretrain.curation.deduplication.components import components, connect, representatives
from dinomed.pretrain.curation.search.pairs import SimilarPairs
from dinomed.pretrain.curation.search.vectors import similarity_of

NEIGHBORS = 64
SELF_THRESHOLD = 0.6
RELATIVE_THRESHOLD = 0.45
NEAR, GROUP, LINKED = "near", "group", "linked"


@dataclass(frozen=True)
class Deduplicated:
    """Which rows of a pile are copies of which; arrays of (N,)."""

    component: np.ndarray  # int64: the lowest row of the component
    keep: np.ndarray  # bool: one of each component
    duplicate_of: np.ndarray  # int64: the row that is kept in its place, -1 for those that are kept
    similarity: np.ndarray  # float32: to that row (below the threshold where a chain of copies leads there), 1 if kept


def neighbors_of(count: int) -> int | None:
    """The k of the paper, or as many others as there are in a smaller pile (None: no others)."""
    return min(NEIGHBORS, count - 1) or None


def deduplicate(x: np.ndarray, pairs: SimilarPairs, place: np.ndarray) -> Deduplicated:
    """One of each connected component stays: the one with the lowest `place`.

    Args:
        x: float32 (N, D), rows of length 1.
        pairs: of `near_pairs(x, threshold=SELF_THRESHOLD, k=NEIGHBORS)`.
        place: int64 (N,), as of `components.order_by`.
    """
    component = components(len(x), pairs.i, pairs.j)
    kept = representatives(component, place)
    rows = np.arange(len(x))
    keep = kept == rows
    return Deduplicated(component, keep, np.where(keep, -1, kept), _similarity_to(x, kept, keep))


def _similarity_to(x: np.ndarray, kept: np.ndarray, keep: np.ndarray) -> np.ndarray:
    similarity = np.ones(len(x), np.float32)
    copies = np.flatnonzero(~keep)
    similarity[copies] = similarity_of(x, x, copies, kept[copies])
    return similarity


@dataclass(frozen=True)
class Exclusion:
    """Which rows of a pile must not be in it, for the sake of reference images; arrays of (N,)."""

    keep: np.ndarray  # bool
    reason: np.ndarray  # text: "" if kept, "near" a reference, of a "group" of one, or "linked" to such rows
    reference: np.ndarray  # int64: the most similar reference of those that are "near", else -1
    similarity: np.ndarray  # float32: to that reference, else nan
    component: np.ndarray  # int64: of near pairs within the pile; the lowest row


def exclude(
    count: int,
    pairs: SimilarPairs,
    references: SimilarPairs,
    *,
    groups: Sequence[Any] | None = None,
    reference_groups: Sequence[Any] | None = None,
) -> Exclusion:
    """All that hangs together with a reference image is out: the whole component, and every image of its groups.

    An image is out if it is near a reference, is of a group of a reference, or is linked to one that is out by a near
    pair or by a group, over any number of steps: a copy of a test image is of a test patient, whose other images are
    then as much a leak.

    Args:
        count: rows of the pile.
        pairs: within the pile, of `near_pairs(x, threshold=RELATIVE_THRESHOLD, k=NEIGHBORS)`.
        references: between the pile (i) and the references (j), of `near_pairs(x, references, threshold=..., k=1)`.
            A k of 1 is enough, and no more is used: it says for each row whether any reference is near.
        groups: of each row of the pile: patient, lesion, video; None where not known.
        reference_groups: of the references, in the same words as `groups`.

    Raises:
        UsageError: groups of another number than rows.
    """
    if groups is not None and len(groups) != count:
        raise UsageError(f"{len(groups)} groups for {count} images")
    component = components(count, pairs.i, pairs.j)
    reference, similarity = np.full(count, -1, np.int64), np.full(count, np.nan, np.float32)
    # ascending similarity, then descending number: the last one written is the best, of equals the first
    order = np.lexsort((-references.j, references.similarity))
    reference[references.i[order]] = references.j[order]
    similarity[references.i[order]] = references.similarity[order]
    near = reference >= 0
    grouped = np.zeros(count, bool)
    linked = component
    if groups is not None:
        wanted = {group for group in reference_groups or () if group is not None}
        grouped = np.fromiter((group is not None and group in wanted for group in groups), bool, count)
        linked = connect(component, *_group_edges(groups))
    out = np.isin(linked, linked[near | grouped])
    reason = np.where(near, NEAR, np.where(grouped, GROUP, np.where(out, LINKED, "")))
    return Exclusion(~out, reason, reference, similarity, component)


def _group_edges(groups: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """From the first image of each group to its others."""
    first: dict[Any, int] = {}
    ends = [(first.setdefault(group, row), row) for row, group in enumerate(groups) if group is not None]
    i, j = np.array(ends, np.int64).reshape(-1, 2).T
    return i, j
