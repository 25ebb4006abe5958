"""Columns of a scanned manifest: facts about files, labels, groups and splits."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dinomed.datasets.manifest import build_manifest
from dinomed.datasets.scan.facts import Facts
from dinomed.datasets.scan.findings import warn_duplicates
from dinomed.datasets.scan.folders import classes_of, splits_of
from dinomed.datasets.scan.frames import VideoRows, common_images, divide_duplicates
from dinomed.datasets.scan.labels import FRAME, NONE, Labels
from dinomed.datasets.splits import RATIOS, check_splits, explain_gaps, join_units, make_splits
from dinomed.errors import UsageError

Columns = dict[str, list[Any]]


def file_columns(facts: Sequence[Facts], table: Labels) -> Columns:
    """Return the columns of the files and those of the table of labels."""
    columns: Columns = {
        "image": [f.image for f in facts],
        "sha256": [f.sha256 for f in facts],
        "width": [f.header.width for f in facts],
        "height": [f.header.height for f in facts],
        "mode": [f.header.mode for f in facts],
        "format": [f.header.format for f in facts],
        "bytes": [f.bytes for f in facts],
        "channels": [f.header.channels for f in facts],
        "bits": [f.header.bits for f in facts],
    }
    rows = [table.rows.get(f.image, {}) for f in facts]
    columns |= {name: [row.get(name) for row in rows] for name in table.columns if name != "mask"}
    masks = [f.mask if f.mask_problem is None else None for f in facts]
    if any(masks):
        columns["mask"] = masks
    return columns


def class_folders(folder: Path, images: Sequence[str], frames: Mapping[str, VideoRows]) -> list[str | None]:
    """Return the class of each image by its folder; the frames of a video have that of the video.

    Raises:
        UsageError: there are no class folders.
    """
    video_of = {facts.image: name for name, rows in frames.items() for facts in rows.facts}
    files = [video_of.get(image, image) for image in images]
    classes = classes_of(files)
    if not classes:
        raise UsageError(f"{folder} has no class folders (FOLDER/CLASS/image); give a CSV, or leave out `labels`")
    return [classes.get(file) for file in files]


def find_duplicates(facts: Sequence[Facts]) -> list[list[str]]:
    """Return the sets of images with the same bytes."""
    same: dict[str, list[str]] = defaultdict(list)
    for f in facts:
        same[f.sha256].append(f.image)
    return [images for images in same.values() if len(images) > 1]


@dataclass
class Division:
    """What is said of the splits of a scan.

    Attributes:
        common: frames that are identical in videos of different groups; new splits leave them out.
        notes: where the splits come from, or why there are none.
        warnings: identical images in different splits, groups or classes, and classes that are missing from a split.
    """

    common: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def add_splits(
    columns: Columns,
    folder: Path,
    table: Labels,
    frames: Mapping[str, VideoRows],
    duplicates: Sequence[list[str]],
    *,
    column: str | None,
    ratios: Sequence[float] | None,
    seed: int,
    new: bool = True,
) -> Division:
    """Add the column of splits: those of the table, or else of split folders, or else `new` ones by group.

    Unless `ratios` or ``column="none"`` ask for them, new splits are made only if there is something to learn: a class,
    a mask, or another column of the table. An unlabelled pool is for pretraining as a whole.

    Args:
        columns: of all images, with groups as they are written.
        duplicates: sets of identical images, which are always in one new split.
        column: name of the column of splits in the table; ``"none"`` makes new splits.
        ratios: shares of train, val and test in new splits; None for `RATIOS`, if there is something to learn.
        seed: of new splits.
        new: make splits if none are given.

    Raises:
        UsageError: a group is in two given splits.
    """
    division = Division()
    classes = columns.get("label", [None] * len(columns["image"]))
    splits, origin = _given_splits(columns, column, table.path)
    if origin:
        division.notes.append(f"splits: {origin}; `split=none` makes new ones")
    if splits and new:
        check_splits(columns["group"], splits, columns["image"])
    units = build_manifest(columns, folder).units()
    joining, shared = (duplicates, []) if splits else divide_duplicates(duplicates, frames)
    joined = join_units(columns["image"], units, joining)
    division.common = common_images(columns["image"], joined, shared)
    if not splits and new:
        if ratios is None and column != NONE and not _has_targets(columns, table):
            division.notes.append(
                "no splits are made, since there are no labels and no masks: pretraining uses all images; "
                f"`ratios={','.join(map(str, RATIOS))}` makes splits"
            )
        else:
            made = make_splits(joined, classes, RATIOS if ratios is None else ratios, seed)
            splits = [
                None if image in division.common else name
                for image, name in zip(columns["image"], made, strict=True)
            ]  # fmt: skip
    if splits:
        columns["split"] = splits
    division.warnings += warn_duplicates(columns, joining)
    division.warnings += explain_gaps(units, classes, splits or [None] * len(units), given=bool(origin))
    return division


def _has_targets(columns: Columns, table: Labels) -> bool:
    """Return whether there is something to learn: a class, a mask, or a value in another column of the table."""
    names = {"label", "mask", *table.columns} - {"group", "split", FRAME}
    return any(value is not None for name in names.intersection(columns) for value in columns[name])


def _given_splits(columns: Columns, split: str | None, table: Path | None) -> tuple[list[str | None], str]:
    """Return the splits of the CSV, or else of split folders, and their origin in words; both empty without any."""
    splits: list[str | None] = columns.get("split", [])
    if table is not None and any(splits):
        return splits, f"column {split or 'split'} of {table.name}"
    if split == NONE:
        return splits, ""
    by_folder = splits_of(columns["image"])
    return ([by_folder.get(image) for image in columns["image"]], "folder names") if by_folder else ([], "")
