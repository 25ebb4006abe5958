"""Splits by group: all images of one patient, lesion or video are in one split, or the test measures memory."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from dinomed.errors import UsageError

SPLITS = ("train", "val", "test")
RATIOS = (0.7, 0.1, 0.2)
"""Shares of the splits, if none are given."""
_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "holdout": "test",
}  # fmt: skip


def split_name(word: str) -> str | None:
    """Return `train`, `val` or `test` for any of their usual names, else None.

    >>> split_name("Validation")
    'val'
    """
    return _NAMES.get(word.strip().lower())


def make_splits(
    groups: Sequence[str],
    labels: Sequence[str | None],
    ratios: Sequence[float] = RATIOS,
    seed: int = 0,
) -> list[str]:
    """Assign a split to each image, by group and stratified by class as evenly as whole groups allow.

    Large groups are assigned first. Among the splits with enough room, a group gets the split in which its classes are
    furthest below their share. The result depends on the seed and the groups, not on the order of the images.

    Args:
        groups: group of each image, such as `Manifest.units`.
        labels: class of each image, or None.
        ratios: shares of train, val and test, divided by their sum; a split with share 0 stays empty.

    Raises:
        UsageError: the ratios are not three finite numbers of at least 0, the first above 0.
    """
    shares = check_ratios(ratios)
    return [SPLITS[part] for part in _assign_parts(groups, labels, shares, seed)]


def make_folds(groups: Sequence[str], labels: Sequence[str | None], folds: int, seed: int = 0) -> list[int]:
    """Assign a fold, 0 to `folds` - 1, to each image, by group and stratified by class as `make_splits`.

    Args:
        groups: group of each image, such as `Manifest.units`.
        labels: class of each image, or None.
        folds: number of folds, at least 2.
        seed: of the order in which groups of one size are assigned.

    Raises:
        UsageError: there are fewer groups than folds.
    """
    count = len(set(groups))
    if folds < 2 or count < folds:
        remedy = "folds need two groups or more"
        if count > 1:
            remedy = f"give 2{'' if count == 2 else f' to {count}'} folds"
        raise UsageError(
            f"`folds={folds}`: the images have {count} groups (patients, lesions, videos, or images without a group); "
            f"{remedy}"
        )
    parts = _assign_parts(groups, labels, np.full(folds, 1 / folds), seed)
    missing = sorted(set(range(folds)) - set(parts))
    if missing:
        raise UsageError(
            f"`folds={folds}`: {len(missing)} folds stay empty, since some of the {count} groups have most of the "
            "images; give fewer folds"
        )
    return parts


def _assign_parts(groups: Sequence[str], labels: Sequence[str | None], shares: np.ndarray, seed: int) -> list[int]:
    """Return the part of each image; `shares` are those of the parts, with sum 1."""
    members: dict[str, Counter[str | None]] = defaultdict(Counter)
    for group, label in zip(groups, labels, strict=True):
        members[group][label] += 1
    order = sorted(members, key=lambda group: (-members[group].total(), shuffled_key(group, seed)))
    class_totals = Counter(labels)
    smallest = min((counts.total() for counts in members.values()), default=0)
    targets = np.where(shares > 0, np.maximum(shares * len(groups), smallest), 0)  # room for one group at least
    sizes = np.zeros(len(shares))
    filled: dict[str | None, np.ndarray] = {label: np.zeros(len(shares)) for label in class_totals}
    assigned: dict[str, int] = {}
    for group in order:
        counts = members[group]
        room = targets - sizes
        fits = (room >= counts.total()) & (shares > 0)
        if not fits.any():
            fits = room == room[shares > 0].max()
        lack = np.zeros(len(shares))  # how much of its share each class of this group still lacks, split by split
        for label, n in counts.items():
            wanted = np.maximum(shares * class_totals[label], 1e-9)
            lack += n * (1 - filled[label] / wanted)
        best = max(np.flatnonzero(fits & (shares > 0)), key=lambda i: (round(float(lack[i]), 9), shares[i], -i))
        assigned[group] = int(best)
        sizes[best] += counts.total()
        for label, n in counts.items():
            filled[label][best] += n
    return [assigned[group] for group in groups]


def check_ratios(ratios: Sequence[float]) -> np.ndarray:
    """Return the shares of train, val and test, with sum 1.

    Raises:
        UsageError: not three finite numbers of at least 0, the first above 0.
    """
    shares = np.asarray(ratios, float)
    if shares.shape != (3,) or not np.isfinite(shares).all() or (shares < 0).any() or shares[0] <= 0:
        raise UsageError(f"ratios {','.join(map(str, ratios))}: expected train,val,test, such as 0.7,0.1,0.2")
    return shares / shares.sum()


def check_splits(groups: Sequence[str | None], splits: Sequence[str | None], images: Sequence[str]) -> None:
    """Raise if images of one group are in two splits; None is no group and no split.

    Raises:
        UsageError: names an image of the first such group in each split, and not the group, which may be a patient.
    """
    seen: dict[str, dict[str, str]] = defaultdict(dict)
    for group, split, image in zip(groups, splits, images, strict=True):
        if group is not None and split is not None:
            seen[group].setdefault(split, image)
    split_groups = sorted(group for group, names in seen.items() if len(names) > 1)
    if split_groups:
        examples = seen[split_groups[0]]
        order = [*SPLITS, *sorted(examples.keys() - set(SPLITS))]  # a manifest may hold other names
        where = " and ".join(f"{examples[split]} in {split}" for split in sorted(examples, key=order.index))
        suffix = f" (and {len(split_groups) - 1} more groups)" if len(split_groups) > 1 else ""
        raise UsageError(
            f"one group has {where}{suffix}: images of one group must be in one split; "
            "correct the split column, or ignore it with `split=none`: new splits are made by group "
            "(of DICOM images the patient; `group=none` leaves them without a group)"
        )


def join_units(images: Sequence[str], units: Sequence[str], duplicates: Sequence[Sequence[str]]) -> list[str]:
    """Join the units that share an image, so that no image is in two splits."""
    parent: dict[str, str] = {}

    def root(unit: str) -> str:
        while unit in parent:
            unit = parent[unit]
        return unit

    unit_of = dict(zip(images, units, strict=True))
    for same in duplicates:
        for image in same[1:]:
            first, second = sorted((root(unit_of[same[0]]), root(unit_of[image])))
            if first != second:
                parent[second] = first
    return [root(unit) for unit in units]


def explain_gaps(
    groups: Sequence[str], labels: Sequence[str | None], splits: Sequence[str | None], *, given: bool = False
) -> list[str]:
    """Return a message for each class that is missing from a split, with the number of its groups.

    Args:
        groups: group of each image.
        labels: class of each image, or None.
        splits: split of each image, or None.
        given: the splits were given, so that new ones may hold a class of several groups.
    """
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
            remedy = "; `split=none` makes new splits" if given and len(owners[label]) >= len(used) else ""
            lines.append(f"class {label!r} ({count}) is not in {' or '.join(absent)}{remedy}")
    return lines


def shuffled_key(group: str, seed: int) -> bytes:
    """Return a sort key for a random order of groups that depends on the seed only."""
    return hashlib.sha256(f"{seed}\0{group}".encode()).digest()
