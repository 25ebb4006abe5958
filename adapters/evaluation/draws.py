"""Nested random draws of labelled images by group, and intervals over several draws."""

from collections.abc import Sequence

import numpy as np

from dinomed.datasets.manifest import Manifest, build_manifest
from dinomed.metrics.bootstrap import RESAMPLES

VAL_EVERY = 5
"""One of this many drawn groups is used for validation."""


def draw_images(pool: Manifest, count: int | None, seed: int, label: str | None = None) -> Manifest:
    """Draw images by group as splits train and val, nested over the counts of one seed.

    The groups are in a random order, and all images of a group are drawn before those of the next one. The second of
    every five groups (of each class) is used for validation.

    Args:
        pool: images to draw from.
        count: number of images; None for all.
        seed: decides the random order of the groups.
        label: column of the classes, whose groups then take turns, so that small draws hold every class.

    Returns:
        The drawn images; their column `split` is new.
    """
    units = pool.units()
    members: dict[str, list[int]] = {}
    for row, unit in enumerate(units):
        members.setdefault(unit, []).append(row)
    names = sorted(members)
    order = [names[i] for i in np.random.default_rng([seed, 7]).permutation(len(names))]
    labels = [""] * len(pool) if label is None else pool.column(label)
    turns: dict[str, int] = {}  # place of a group among those of its class
    last_turn: dict[str, int] = {}
    for name in order:
        kind = labels[members[name][0]]
        turns[name] = last_turn[kind] = last_turn.get(kind, -1) + 1
    rows: list[int] = []
    splits: list[str] = []
    for name in sorted(order, key=turns.__getitem__):
        drawn_rows = members[name] if count is None else members[name][: count - len(rows)]
        rows += drawn_rows
        splits += ["val" if turns[name] % VAL_EVERY == 1 else "train"] * len(drawn_rows)
        if count is not None and len(rows) >= count:
            break
    drawn = pool.take(rows)
    return build_manifest({name: drawn.column(name) for name in drawn.columns} | {"split": splits}, drawn.root)


def interval_over_draws(values: np.ndarray, groups: Sequence[str]) -> tuple[float, float]:
    """Return the 95% interval of the mean over draws and images; draws and groups of images are both resampled.

    Args:
        values: a metric of each test image for each draw, (draws, N).
        groups: group of each test image, N.

    Returns:
        The 2.5th and the 97.5th percentile.
    """
    names = sorted(set(groups))
    place = {name: index for index, name in enumerate(names)}
    member = np.array([place[group] for group in groups])
    sums = np.stack([np.bincount(member, weights=row, minlength=len(names)) for row in values])
    sizes = np.bincount(member, minlength=len(names))
    rng = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES):
        draws, chosen = rng.integers(len(values), size=len(values)), rng.integers(len(names), size=len(names))
        means.append(sums[draws][:, chosen].mean(axis=0).sum() / sizes[chosen].sum())
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)
