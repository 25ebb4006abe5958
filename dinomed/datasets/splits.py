"""Splits by group: all images of one patient, lesion or video stand on one side, or the test measures memory."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from dinomed.errors import UsageError

SPLITS = ("train", "val", "test")
_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "holdout": "test",
}  # fmt: skip


def split_name(word: str) -> str | None:
    """`train`, `val` or `test` for any of their usual names, else None.

    >>> split_name("Validation")
    'val'
    """
    return _NAMES.get(word.strip().lower())


def make_splits(
    groups: Sequence[str],
    labels: Sequence[str | None],
    ratios: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
) -> list[str]:
    """A split for each image, by group, with each class spread over the splits as evenly as whole groups allow.

    Large groups are placed first, each where its classes are furthest from their share among the splits that still
    have room for it. The result depends on the seed and the groups, not on the order of the images.

    Args:
        groups: the group of each image.
        labels: the class of each image, or None.
        ratios: shares of train, val and test; they are divided by their sum, and a split of 0 stays empty.
    """
    shares = check_ratios(ratios)
    members: dict[str, Counter[str | None]] = defaultdict(Counter)
    for group, label in zip(groups, labels, strict=True):
        members[group][label] += 1
    order = sorted(members, key=lambda group: (-members[group].total(), _shuffled(group, seed)))
    class_totals = Counter(labels)
    smallest = min((counts.total() for counts in members.values()), default=0)
    targets = np.where(shares > 0, np.maximum(shares * len(groups), smallest), 0)  # room for one group at least
    sizes = np.zeros(3)
    filled: dict[str | None, np.ndarray] = {label: np.zeros(3) for label in class_totals}
    assigned: dict[str, str] = {}
    for group in order:
        counts = members[group]
        room = targets - sizes
        fits = (room >= counts.total()) & (shares > 0)
        if not fits.any():
            fits = room == room[shares > 0].max()
        lack = np.zeros(3)  # how much of its share each class of this group still lacks, split by split
        for label, n in counts.items():
            wanted = np.maximum(shares * class_totals[label], 1e-9)
            lack += n * (1 - filled[label] / wanted)
        best = max(np.flatnonzero(fits & (shares > 0)), key=lambda i: (round(float(lack[i]), 9), shares[i], -i))
        assigned[group] = SPLITS[best]
        sizes[best] += counts.total()
        for label, n in counts.items():
            filled[label][best] += n
    return [assigned[group] for group in groups]


def check_ratios(ratios: Sequence[float]) -> np.ndarray:
    """The shares of train, val and test, summing to 1."""
    shares = np.asarray(ratios, float)
    if shares.shape != (3,) or not np.isfinite(shares).all() or (shares < 0).any() or shares[0] <= 0:
        raise UsageError(f"ratios {','.join(map(str, ratios))}: give train,val,test, such as 0.7,0.1,0.2")
    return shares / shares.sum()


def check_splits(groups: Sequence[str | None], splits: Sequence[str | None]) -> None:
    """Raise a `UsageError` that names a group of which images are in two splits; None belongs to no group or split."""
    seen: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        if group is not None and split is not None:
            seen[group].add(split)
    torn = sorted(group for group, where in seen.items() if len(where) > 1)
    if torn:
        where = " and ".join(sorted(seen[torn[0]], key=SPLITS.index))
        more = f" (and {len(torn) - 1} more groups)" if len(torn) > 1 else ""
        raise UsageError(
            f"group {torn[0]!r} is in {where}{more}: images of one group must be in one split; "
            "correct the split column, or leave it out (--split none) to have splits made by group"
        )


def explain_gaps(groups: Sequence[str], labels: Sequence[str | None], splits: Sequence[str | None]) -> list[str]:
    """A line for each class that is missing from a split which has images, and why, if it has too few groups."""
    used = [split for split in SPLITS if split in set(splits)]
    places: dict[str, set[str]] = defaultdict(set)
    owners: dict[str, set[str]] = defaultdict(set)
    for group, label, split in zip(groups, labels, splits, strict=True):
        if label is not None and split is not None:
            places[label].add(split)
            owners[label].add(group)
    lines = []
    for label in sorted(places):
        absent = [split for split in used if split not in places[label]]
        if absent:
            count = f"{len(owners[label])} group{'s' if len(owners[label]) > 1 else ''}"
            lines.append(f"class {label!r} ({count}) is not in {' or '.join(absent)}")
    return lines


def _shuffled(group: str, seed: int) -> bytes:
    """A key that sorts groups in a random order which the seed decides, the same on every machine."""
    return hashlib.sha256(f"{seed}\0{group}".encode()).digest()
