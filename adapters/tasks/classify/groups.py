"""One answer for a group: a lesion by its several pictures, a video by 8 evenly spaced frames.

The paper classifies videos by 8 evenly spaced frames, whose features are averaged (UCF-101, Kinetics-400) or, where the
order matters, concatenated (SSv2; section 7.2). Frames are ordered by a column `frame` (numbers) where the manifest has
one, else by file name, with the numbers in it as numbers. An image without a group is a group of its own.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dinomed.datasets.manifest import Manifest
from dinomed.errors import UsageError

FRAME = "frame"
FRAMES = 8
Pool = Literal["mean", "concat"]


@dataclass(frozen=True)
class Groups:
    """Groups of a manifest's images. `frames` are the rows that are looked at, in the order of `manifest`, and
    `members` says of each group which of those it has, in its own order; `names` are the groups, None where a group is
    an image without one."""

    manifest: Manifest
    members: tuple[tuple[int, ...], ...]
    names: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.members)

    def first(self) -> Manifest:
        """One row a group, that of its first frame: for what all images of a group share."""
        return self.manifest.take([members[0] for members in self.members])

    def average(self, values: np.ndarray) -> np.ndarray:
        """Means over the members of each group: (frames, ...) -> (groups, ...)."""
        return np.stack([values[list(members)].mean(axis=0) for members in self.members])

    def pool(self, features: np.ndarray, pool: Pool, blocks: int) -> np.ndarray:
        """Features of the frames (n, blocks * C) as those of the groups: (groups, blocks * C), or, concatenated,
        (groups, blocks * frames * C), where a block's channels are those of its frames one after the other."""
        if pool == "mean":
            return self.average(features)
        table = features[np.array(self.members)]  # groups, frames, blocks * C
        groups, frames, width = table.shape
        return table.reshape(groups, frames, blocks, -1).transpose(0, 2, 1, 3).reshape(groups, frames * width)


def group_images(manifest: Manifest, frames: int = FRAMES, *, fill: bool = False) -> Groups:
    """The groups of a manifest, by first appearance, each with at most `frames` evenly spaced images.

    Args:
        fill: give every group exactly `frames`, repeating those of a shorter one evenly; for concatenation.

    Raises:
        UsageError: no image has a group, or a frame is no number.
    """
    if not manifest.has("group"):
        raise UsageError(
            f"unit: group needs a column 'group' (a lesion, patient or video), which {manifest.called} has not; "
            f"{manifest.scan_again('--labels FILE.csv --group COLUMN')}"
        )
    found: dict[tuple[str, str | int], list[int]] = defaultdict(list)
    for row, name in enumerate(manifest.groups()):
        found[("image", row) if name is None else ("group", name)].append(row)
    order = _order(manifest)
    chosen = []
    for rows in found.values():
        rows = sorted(rows, key=order.__getitem__)
        chosen.append([rows[i] for i in evenly_spaced(len(rows), frames if fill else min(frames, len(rows)))])
    used = sorted({row for rows in chosen for row in rows})
    place = {row: i for i, row in enumerate(used)}
    return Groups(
        manifest.take(used),
        tuple(tuple(place[row] for row in rows) for rows in chosen),
        tuple(str(name) if kind == "group" else None for kind, name in found),
    )


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """`wanted` places in a row of `count`: the middles of as many equal parts. A shorter row repeats some.

    >>> evenly_spaced(100, 4), evenly_spaced(2, 4), evenly_spaced(3, 3)
    ([12, 37, 62, 87], [0, 0, 1, 1], [0, 1, 2])
    """
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def check_labels(groups: Groups, manifest: Manifest, columns: Sequence[str]) -> None:
    """Raises a `UsageError` if images of one group, of the whole `manifest`, have different labels."""
    for column in columns:
        seen: dict[str, set[str]] = defaultdict(set)
        for group, value in zip(manifest.groups(), manifest.column(column), strict=True):
            if group is not None and value is not None:
                seen[group].add(value)
        torn = sum(len(values) > 1 for values in seen.values())
        if torn:
            raise UsageError(
                f"{torn} of {len(groups)} groups hold images of different labels in column {column!r}; "
                "one answer for a group needs one label: use unit: image"
            )


def _order(manifest: Manifest) -> list[tuple[float | tuple[str | int, ...], ...]]:
    """A key for each row by which its group is ordered."""
    names = [_natural(image) for image in manifest.column("image")]
    if not manifest.has(FRAME):
        return [(name,) for name in names]
    frames = []
    for value in manifest.column(FRAME):
        try:
            frames.append(float("inf") if value is None else float(value))
        except ValueError:
            raise UsageError(f"column {FRAME!r} holds {value!r}; it is a number, by which frames are ordered") from None
    return list(zip(frames, names, strict=True))


def _natural(text: str) -> tuple[str | int, ...]:
    """Numbers in a name as numbers, so that frame 10 comes after frame 9.

    >>> _natural("a9.png") < _natural("a10.png")
    True
    """
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text))
