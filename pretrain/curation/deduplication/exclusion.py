"""Exclusion of pool images that are duplicates of evaluation images or related to them (DINOv2, section 3, appendix A).

The functions take the pairs that a search found, so that the caller decides where the search runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinomed.errors import UsageError
from dinomed.pretrain.curation.deduplication.components import components, connect
from dinomed.pretrain.curation.search.pairs import SimilarPairs

SELF_THRESHOLD = 0.6
RELATIVE_THRESHOLD = 0.45
NEAR, GROUP, LINKED = "near", "group", "linked"


@dataclass(frozen=True)
class Exclusion:
    """The rows of a pool that must be removed because of reference images; arrays of (N,).

    Attributes:
        reason: str; `NEAR` (near a reference), `GROUP` (in a group of a reference), `LINKED` (connected to such rows),
            or "" for rows that are kept.
        reference: int64; the most similar reference of the rows that are near one, else -1.
        similarity: float32; cosine to that reference, else nan.
    """

    reason: np.ndarray
    reference: np.ndarray
    similarity: np.ndarray


def exclude(
    count: int,
    pairs: SimilarPairs,
    references: SimilarPairs,
    *,
    groups: Sequence[tuple[Any, ...]] | None = None,
    reference_groups: Sequence[Any] | None = None,
) -> Exclusion:
    """Find the rows that are connected to a reference image by near pairs or by groups.

    An image is removed if it is near a reference, if it is in a group of a reference, or if near pairs and groups
    connect it to a removed image over any number of steps. A copy of a test image shows a test patient, so the other
    images of that patient are leaks as well.

    Args:
        count: rows of the pool.
        pairs: within the pool, from `near_pairs(x, threshold=RELATIVE_THRESHOLD, k=64)`.
        references: between the pool (i) and the references (j), from `near_pairs(x, references, threshold=..., k=1)`.
            A k of 1 is enough, because only the most similar reference of each row is used.
        groups: groups of each row of the pool (patient, lesion, video); empty where unknown.
        reference_groups: group of each reference, with the same names as `groups`; None where unknown.

    Raises:
        UsageError: the number of groups differs from the number of rows.
    """
    if groups is not None and len(groups) != count:
        raise UsageError(f"there are {len(groups)} groups for {count} images; give the groups of each image")
    component = components(count, pairs.i, pairs.j)
    reference, similarity = np.full(count, -1, np.int64), np.full(count, np.nan, np.float32)
    # by ascending similarity, then descending number: the last assignment is the most similar, of equals the first
    order = np.lexsort((-references.j, references.similarity))
    reference[references.i[order]] = references.j[order]
    similarity[references.i[order]] = references.similarity[order]
    is_near = reference >= 0
    in_group = np.zeros(count, bool)
    if groups is not None:
        excluded_groups = {group for group in reference_groups or () if group is not None}
        in_group = np.fromiter((not excluded_groups.isdisjoint(names) for names in groups), bool, count)
        component = connect(component, *_group_edges(groups))
    is_linked = np.isin(component, component[is_near | in_group])
    reason = np.where(is_near, NEAR, np.where(in_group, GROUP, np.where(is_linked, LINKED, "")))
    return Exclusion(reason, reference, similarity)


def _group_edges(groups: Sequence[tuple[Any, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Return edges from the first image of each group to all its images."""
    first: dict[Any, int] = {}
    edges = [(first.setdefault(group, row), row) for row, names in enumerate(groups) for group in names]
    i, j = np.array(edges, np.int64).reshape(-1, 2).T
    return i, j
