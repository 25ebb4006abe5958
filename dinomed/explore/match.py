"""Matches of patches between two images (Oquab et al. 2023, DINOv2, section 7.5 and figure 10).

A match shows which patches are similar for the backbone. It does not show that they are the same anatomy.
"""

from dataclasses import dataclass

import numpy as np

from dinomed.features.neighbors import normalised

MIN_SIMILARITY = 0.5
COUNT = 20  # matches that are drawn


@dataclass(frozen=True)
class PatchMatch:
    """A patch (row, column) of the first image, one of the second, and their similarity, -1 to 1."""

    first: tuple[int, int]
    second: tuple[int, int]
    similarity: float


def match_patches(
    first: np.ndarray,
    second: np.ndarray,
    *,
    min_similarity: float = MIN_SIMILARITY,
    spacing: int | None = None,
    count: int = COUNT,
) -> list[PatchMatch]:
    """Match patches that are mutual nearest neighbours by cosine similarity, and keep the strongest of a region.

    The paper solves an assignment problem, in which every patch of the smaller image gets a partner. Here both patches
    must be nearest neighbours of each other, so a patch without a counterpart has no match (Amir et al. 2021, "Deep ViT
    features as dense visual descriptors", section 4: "best buddies"). The mean over both images is subtracted
    first, because a component that all patches share does not distinguish them. Non-maximum suppression then removes a
    match if a stronger one is less than `spacing` patches away, in rows and in columns, in either image.

    Args:
        first: patch tokens (rows, columns, C).
        second: patch tokens of the other image, of any grid.
        min_similarity: matches below are left out.
        spacing: smallest distance of two matches, patches; 1 keeps all; None for a tenth of the smaller side, at least
            1.
        count: largest number of matches.

    Returns:
        The matches, best first; none if no mutual pair is similar enough.
    """
    similarity = centred_similarity(first, second)
    forth, back = similarity.argmax(axis=1), similarity.argmax(axis=0)
    rows = np.flatnonzero(back[forth] == np.arange(len(forth)))
    values = similarity[rows, forth[rows]]
    strong = values >= max(min_similarity, 1e-6)  # uniform images have similarity 0 everywhere
    rows, values = rows[strong], values[strong]
    distance = max(1, round(min(*first.shape[:2], *second.shape[:2]) / 10)) if spacing is None else spacing
    kept: list[PatchMatch] = []
    for place in np.argsort(-values, kind="stable"):
        here = divmod(int(rows[place]), first.shape[1])
        there = divmod(int(forth[rows[place]]), second.shape[1])
        if any(_near(here, match.first, distance) or _near(there, match.second, distance) for match in kept):
            continue
        kept.append(PatchMatch(here, there, float(values[place])))
        if len(kept) == count:
            break
    return kept


def centred_similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute the cosine similarities of patches (rows, columns, C) of two images, less the mean over both.

    Returns:
        float32 (patches of the first, patches of the second).
    """
    left, right = (tokens.reshape(-1, tokens.shape[-1]).astype(np.float32) for tokens in (first, second))
    middle = np.concatenate([left, right]).mean(axis=0)
    return normalised(left - middle, "patch") @ normalised(right - middle, "patch").T


def _near(place: tuple[int, int], other: tuple[int, int], distance: int) -> bool:
    return max(abs(place[0] - other[0]), abs(place[1] - other[1])) < distance
