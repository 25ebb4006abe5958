"""Groups of images for one prediction: a lesion with several images, or a video with 8 evenly spaced frames.

DINOv2 (section 7.2) classifies videos by 8 evenly spaced frames, whose features are averaged (UCF-101, Kinetics-400)
or, where their order matters, concatenated (SSv2). Frames are ordered by the column `frame` (numbers) if the manifest
has it, else by file name, in which digits count as numbers. An image without a group is a group of its own.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from dinomed.adapters.tasks.classify.labels import LabelColumns
from dinomed.datasets.manifest import Manifest
from dinomed.datasets.scan.labels import FRAME
from dinomed.datasets.tables import compose_letters
from dinomed.errors import UsageError

FRAMES = 8
Pool = Literal["mean", "concat"]


@dataclass(frozen=True)
class Groups:
    """Groups of the images of a manifest.

    Attributes:
        manifest: the images that are predicted.
        members: rows of `manifest` of each group, in the order of the group.
        names: name of each group; None for an image without a group.
    """

    manifest: Manifest
    members: tuple[tuple[int, ...], ...]
    names: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.members)

    def first(self) -> Manifest:
        """Return one row for each group, that of its first frame. Its labels are those of `label_groups`."""
        return self.manifest.take([members[0] for members in self.members])

    def average(self, values: np.ndarray) -> np.ndarray:
        """Return the mean over the members of each group: (frames, ...) -> (groups, ...)."""
        return np.stack([values[list(members)].mean(axis=0) for members in self.members])

    def pool(self, features: np.ndarray, pool: Pool, blocks: int) -> np.ndarray:
        """Return the features of the groups from those of the frames; see `pool_members`."""
        return pool_members(features, self.members, pool, blocks)


def pool_members(features: np.ndarray, members: Sequence[Sequence[int]], pool: Pool, blocks: int) -> np.ndarray:
    """Return the features of groups from those of frames (n, blocks * C).

    They are (groups, blocks * C) if averaged, and (groups, blocks * frames * C) if concatenated: each block then holds
    the channels of its frames in order.

    Args:
        features: of the frames.
        members: rows of `features` of each group; for concatenation as many of every group.
        pool: average or concatenate.
        blocks: number of blocks whose tokens stand side by side in `features`.
    """
    if pool == "mean":
        return np.stack([features[list(rows)].mean(axis=0) for rows in members])
    table = features[np.array(members)]  # groups, frames, blocks * C
    groups, frames, width = table.shape
    return table.reshape(groups, frames, blocks, -1).transpose(0, 2, 1, 3).reshape(groups, frames * width)


def group_images(manifest: Manifest, frames: int = FRAMES, *, fill: bool = False) -> Groups:
    """Group the images of a manifest, in the order of first appearance.

    Args:
        manifest: images with groups.
        frames: largest number of images of a group; they are evenly spaced.
        fill: give every group exactly `frames` images, by repeating those of shorter groups; for concatenation.

    Raises:
        UsageError: no image has a group, or a value of the column `frame` is no number.
    """
    if not manifest.has("group"):
        raise UsageError(
            f"unit: group needs a column 'group' (a lesion, patient or video), which {manifest.called} has not; "
            f"{manifest.scan_again('--labels FILE.csv --group COLUMN')}"
        )
    rows_of_group: dict[tuple[str, str | int], list[int]] = defaultdict(list)
    for row, name in enumerate(manifest.groups()):
        rows_of_group[("image", row) if name is None else ("group", name)].append(row)
    order = _order(manifest)
    chosen = []
    for rows in rows_of_group.values():
        rows = sorted(rows, key=order.__getitem__)
        chosen.append([rows[i] for i in evenly_spaced(len(rows), frames if fill else min(frames, len(rows)))])
    used = sorted({row for rows in chosen for row in rows})
    place = {row: i for i, row in enumerate(used)}
    return Groups(
        manifest.take(used),
        tuple(tuple(place[row] for row in rows) for rows in chosen),
        tuple(str(name) if kind == "group" else None for kind, name in rows_of_group),
    )


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """Return `wanted` evenly spaced places out of `count`: the middles of equal parts. With fewer places some repeat.

    >>> evenly_spaced(100, 4), evenly_spaced(2, 4), evenly_spaced(3, 3)
    ([12, 37, 62, 87], [0, 0, 1, 1], [0, 1, 2])
    """
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def label_groups(groups: Groups, manifest: Manifest, columns: LabelColumns) -> Manifest:
    """Return one row for each group, that of its first frame, with the labels of the group.

    In each label column it has the value that is known of the images of the group, of which some may have an empty
    cell, also of images that are not among its frames.

    Args:
        groups: of `manifest`.
        manifest: all images, with labels.
        columns: the columns of the labels.

    Raises:
        UsageError: images of one group have different labels. Two texts of the same labels are equal (``a|b`` and
            ``b|a``, ``1`` and ``true``).
    """
    units = groups.first()
    table = units.table
    for column in columns.columns:
        known: dict[str, dict[Any, Any]] = defaultdict(dict)  # group -> labels -> the first cell that holds them
        for group, value in zip(manifest.groups(), manifest.column(column), strict=True):
            labels = columns.parse(column, value)
            if group is not None and labels is not None:
                known[str(group)].setdefault(labels, value)
        mixed = sum(len(cells) > 1 for cells in known.values())
        if mixed:
            raise UsageError(
                f"{mixed} of {len(groups)} groups hold images of different labels in column {column!r}; "
                "one prediction for a group needs one label: use unit: image"
            )
        cells = [
            value if name is None else next(iter(known[name].values()), None)
            for name, value in zip(groups.names, units.column(column), strict=True)
        ]
        place = table.column_names.index(column if column in table.column_names else compose_letters(column))
        field = table.schema.field(place)
        table = table.set_column(place, field, pa.array(cells, field.type))
    return replace(units, table=table)


def _order(manifest: Manifest) -> list[tuple[float | tuple[str | int, ...], ...]]:
    """Return the sort key of each row within its group."""
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
    """Return a sort key with digits as numbers, so that frame 10 comes after frame 9.

    >>> _natural("a9.png") < _natural("a10.png")
    True
    """
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text))
