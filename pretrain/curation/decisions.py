"""Decisions of a curation: whether an image is kept, and the reason if it is not.

The reasons are the values of the column `reason`. An image has one reason, the first that applies in the order of the
stages; it is null for images that are kept.
"""

from collections.abc import Iterable

import numpy as np

from dinomed.pretrain.curation.filters.quality import QUALITY_REASONS

DENIED, NOT_ALLOWED = "denied", "not allowed"
UNREADABLE = "unreadable"
FACE = "face"
EXCLUDED_COPY = "copy of an excluded image"
EXCLUDED_GROUP = "group of an excluded image"
EXCLUDED_LINK = "linked to such an image"
EXACT_COPY, NEAR_EXACT_COPY, NEAR_COPY = "exact copy", "near-exact copy", "near copy"
UNLIKE = "unlike the trusted sets"
NOT_RETRIEVED = "not retrieved"
NOT_SAMPLED = "not sampled"

REASONS = (
    DENIED, NOT_ALLOWED, UNREADABLE, *QUALITY_REASONS, FACE, EXCLUDED_COPY, EXCLUDED_GROUP, EXCLUDED_LINK, EXACT_COPY,
    NEAR_EXACT_COPY, NEAR_COPY, UNLIKE, NOT_RETRIEVED, NOT_SAMPLED,
)  # fmt: skip
"""All reasons, in the order of the stages."""

EXPLANATIONS = {
    DENIED: "its path or another column matches the deny list",
    NOT_ALLOWED: "its path or another column does not match the allow list",
    UNREADABLE: "the file cannot be read",
    **dict.fromkeys(QUALITY_REASONS, "a quality filter (quality.* of the config)"),
    FACE: "a face was detected, and faces.action is drop",
    EXCLUDED_COPY: "it is a near-duplicate of an image of an --exclude set",
    EXCLUDED_GROUP: "it is of a patient, lesion or video of an --exclude set",
    EXCLUDED_LINK: "it is linked to such an image by near-duplicates or groups, over any number of steps",
    EXACT_COPY: "the same file is kept once (duplicate_of)",
    NEAR_EXACT_COPY: "it is resized or recompressed; the original is kept (duplicate_of)",
    NEAR_COPY: "its copy-detection descriptor matches that of another image, which is kept (duplicate_of)",
    UNLIKE: "no image of the query sets is similar to it",
    NOT_RETRIEVED: "no query set retrieved it",
    NOT_SAMPLED: "its cluster is already represented",
}
"""Reason -> explanation for reports."""


class Decisions:
    """The reason of each of N images, None for images that are kept so far. The first reason of an image stays."""

    def __init__(self, count: int) -> None:
        self.reason = np.full(count, None, object)

    @property
    def kept(self) -> np.ndarray:
        """Images that are kept so far, bool (N,)."""
        return is_none(self.reason)

    def drop(self, rows: np.ndarray, reason: str) -> None:
        """Drop images.

        Args:
            rows: a mask (N,) or row numbers; images that are already dropped keep their reason.
        """
        dropped = np.zeros(len(self.reason), bool)
        dropped[rows] = True
        self.reason[dropped & self.kept] = reason


def is_none(values: Iterable[object]) -> np.ndarray:
    """Return which of N values are None, bool (N,)."""
    return np.fromiter((value is None for value in values), bool)
