"""From a folder of pictures to a manifest: every image read once, labels and masks matched, splits by group."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dinomed.datasets.facts import Facts, read_all, read_facts
from dinomed.datasets.folders import Pairs, classes_of, pair_masks, splits_of
from dinomed.datasets.labels import NONE, Labels, find_labels, read_labels
from dinomed.datasets.manifest import Manifest, build_manifest
from dinomed.datasets.splits import check_splits, explain_gaps, make_splits
from dinomed.datasets.walk import Found, walk
from dinomed.errors import UsageError

FOLDERS = "folders"
"""In place of a CSV: folder names are the classes."""
_LISTED = 5  # examples in a message


@dataclass
class ScanResult:
    """A manifest, and what there is to say about it.

    `unreadable` lists what could not be used, as (path, reason); `masks` counts masks, and the empty and full ones;
    `duplicates` are sets of images with the same bytes; `warnings` concern the data's fitness, `notes` the rest.
    """

    manifest: Manifest
    unreadable: list[tuple[str, str]]
    masks: dict[str, int]
    duplicates: list[list[str]]
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def scan(
    folder: str | Path,
    labels: str | Path | None = None,
    *,
    image_column: str = "image",
    label: str | None = None,
    group: str | None = None,
    mask: str | None = None,
    split: str | None = None,
    ratios: Sequence[float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    make_split: bool = True,
    workers: int | None = None,
    follow_links: bool = False,
) -> ScanResult:
    """Read every image below `folder`.

    Splits come from the CSV, else from split folders, else (with `make_split`) they are made: by group, stratified by
    label. Without groups each image is its own, but images with the same bytes share one.

    Args:
        labels: a CSV (as given, or in `folder`; see `dinomed.datasets.labels`), ``"folders"`` for classes by folder
            name, or None.
        label, group, mask, split: columns of the CSV; None takes the one of that very name if it is there, ``"none"``
            uses none.
        ratios: shares of train, val and test where splits are made.
        workers: threads; None for one a processor.

    Raises:
        UsageError: no such folder; no readable image in it; a column or the CSV is missing; a mask of another size
            than its image; no mask that can be used; a group in two splits.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder" if folder.exists() else f"folder {folder} does not exist")
    found = walk(folder, follow_links=follow_links)
    pairs = pair_masks(found.images)
    table = Labels()
    if labels is not None and str(labels) != FOLDERS:
        roles = {"label": label, "group": group, "mask": mask, "split": split}
        path = find_labels(labels, folder)
        table = read_labels(path, folder, found.images, pairs.images, image_column=image_column, roles=roles)
    masks = _masks(table, pairs, mask)
    others = {*masks.values(), *table.targets}
    images = sorted({path for path in pairs.images if path not in others} | set(table.rows))
    facts, failed = read_all(folder, images, masks, workers)
    unreadable = [*found.refused, *failed, *table.missing]
    if not facts:
        raise UsageError(_nothing_in(folder, unreadable))
    _check_masks(facts)
    unreadable += [(f.mask, f"mask of {f.image}: {f.mask_problem}") for f in facts if f.mask and f.mask_problem]

    rows = [table.rows.get(f.image, {}) for f in facts]
    columns = _columns(facts, rows, table)
    if str(labels) == FOLDERS:
        columns["label"] = _class_folders(folder, facts)
    duplicates = _duplicates(facts)
    given_groups = columns.get("group")
    given_splits = _given_splits(columns, facts)
    if given_groups and given_splits:
        check_splits(given_groups, given_splits)
    columns["group"] = _groups(facts, given_groups, given_splits, duplicates)
    if given_splits:
        columns["split"] = given_splits
    elif make_split:
        columns["split"] = make_splits(
            _joined(facts, columns["group"], duplicates), columns.get("label", [None] * len(facts)), ratios, seed
        )
    result = ScanResult(build_manifest(columns, folder), unreadable, _count_masks(facts), duplicates)
    result.warnings = [
        *_warn_unreadable(len(facts), len(failed), masks, facts),
        *_warn_duplicates(columns, facts, duplicates, given_groups is not None),
        *explain_gaps(columns["group"], columns.get("label", [None] * len(facts)), columns.get("split", [])),
    ]
    result.notes = _notes(folder, found, pairs, table, facts, labels, columns)
    return result


def scan_file(path: str | Path) -> Manifest:
    """The manifest of one image file; `UnreadableImage` if it cannot be used."""
    path = Path(path)
    return build_manifest(_columns([read_facts(path.parent, path.name)], [{}], Labels()), path.parent)


def _masks(table: Labels, pairs: Pairs, mask: str | None) -> dict[str, str]:
    """The mask of each image: as the CSV says, else by folders and names."""
    if "mask" in table.columns:
        return {image: named for image, row in table.rows.items() if (named := row["mask"])}
    return {} if mask == NONE else dict(pairs.masks)


def _check_masks(facts: list[Facts]) -> None:
    """Refuse masks that would spoil a training silently: of another size than the image, or none that is a mask."""
    wrong = [f"{f.mask}: {f.mask_problem}" for f in facts if f.wrong_size]
    if wrong:
        more = f" (and {len(wrong) - _LISTED} more)" if len(wrong) > _LISTED else ""
        raise UsageError(
            f"{len(wrong)} of {len(facts)} images have a mask of another size; nothing was written. "
            + "; ".join(wrong[:_LISTED])
            + more
        )
    given = [f for f in facts if f.mask]
    bad = [f for f in given if f.mask_problem]
    if bad and len(bad) == len(given):
        raise UsageError(
            f"none of the {len(bad)} masks can be used ({bad[0].mask}: {bad[0].mask_problem}); "
            "--mask none goes on without masks"
        )


def _columns(facts: list[Facts], rows: list[dict[str, str | None]], table: Labels) -> dict[str, list[Any]]:
    """The columns that are read off the files, and those of the CSV."""
    columns: dict[str, list[Any]] = {
        "image": [f.image for f in facts],
        "sha256": [f.sha256 for f in facts],
        "width": [f.header.width for f in facts],
        "height": [f.header.height for f in facts],
        "mode": [f.header.mode for f in facts],
        "format": [f.header.format for f in facts],
        "bytes": [f.bytes for f in facts],
    }
    for name in table.columns:
        columns[name] = [row.get(name) for row in rows]
    columns.pop("mask", None)
    if any(f.foreground is not None for f in facts):
        columns["mask"] = [f.mask if f.foreground is not None else None for f in facts]
    return columns


def _class_folders(folder: Path, facts: list[Facts]) -> list[str | None]:
    classes = classes_of(f.image for f in facts)
    if not classes:
        raise UsageError(f"{folder} has no class folders (FOLDER/CLASS/image); give the labels as a CSV, or none")
    return [classes.get(f.image) for f in facts]


def _duplicates(facts: Iterable[Facts]) -> list[list[str]]:
    same: dict[str, list[str]] = defaultdict(list)
    for f in facts:
        same[f.sha256].append(f.image)
    return [images for images in same.values() if len(images) > 1]


def _given_splits(columns: dict[str, list[Any]], facts: list[Facts]) -> list[str | None]:
    """From the CSV, else from split folders; empty where nobody gave any."""
    if any(columns.get("split", [])):
        return columns["split"]
    columns.pop("split", None)
    by_folder = splits_of(f.image for f in facts)
    return [by_folder.get(f.image) for f in facts] if by_folder else []


def _groups(
    facts: list[Facts], given: list[str | None] | None, splits: Sequence[str | None], duplicates: list[list[str]]
) -> list[str]:
    """The group of each image; one without is its own group, named by its path, shared by images of the same bytes
    (unless given splits part them: that is warned about, and not hidden)."""
    first = {image: images[0] for images in duplicates for image in images}
    split = dict(zip((f.image for f in facts), splits, strict=True)) if splits else {}
    own = {image: head if split.get(image) == split.get(head) else image for image, head in first.items()}
    return [named or own.get(f.image, f.image) for f, named in zip(facts, given or [None] * len(facts), strict=True)]


def _joined(facts: list[Facts], groups: list[str], duplicates: list[list[str]]) -> list[str]:
    """Groups for making splits: those that share an image are one, or the same picture could be on both sides."""
    parent: dict[str, str] = {}

    def head(group: str) -> str:
        while group in parent:
            group = parent[group]
        return group

    of = {f.image: group for f, group in zip(facts, groups, strict=True)}
    for images in duplicates:
        for image in images[1:]:
            one, other = sorted((head(of[images[0]]), head(of[image])))
            if one != other:
                parent[other] = one
    return [head(group) for group in groups]


def _count_masks(facts: list[Facts]) -> dict[str, int]:
    shares = [f.foreground for f in facts if f.foreground is not None]
    return {"masks": len(shares), "empty": shares.count(0.0), "full": shares.count(1.0)}


def _nothing_in(folder: Path, unreadable: list[tuple[str, str]]) -> str:
    if not unreadable:
        return f"folder {folder} holds no image"
    path, reason = unreadable[0]
    return (
        f"folder {folder} holds no image that can be read ({len(unreadable)} files refused, the first {path}: {reason})"
    )


def _warn_unreadable(read: int, failed: int, masks: dict[str, str], facts: list[Facts]) -> list[str]:
    lines = []
    if failed > read:
        lines.append(
            f"MORE THAN HALF of the images cannot be read: {failed} of {failed + read}. Is this the right folder?"
        )
    bad = sum(f.mask_problem is not None for f in facts)
    if bad:
        lines.append(f"{bad} of {len(masks)} masks cannot be used; their images are kept without")
    return lines


def _warn_duplicates(
    columns: dict[str, list[Any]], facts: list[Facts], duplicates: list[list[str]], grouped: bool
) -> list[str]:
    """Images of the same bytes that stand in different groups, splits or classes."""
    lines = []
    index = {f.image: i for i, f in enumerate(facts)}
    for name, why in (
        ("split", "the test sees training images"),
        ("group", "their groups may be one; made splits keep them together"),
        ("label", "one of the labels is wrong"),
    ):
        if name not in columns or (name == "group" and not grouped):
            continue
        apart = [images for images in duplicates if len({columns[name][index[i]] for i in images} - {None}) > 1]
        if apart:
            named = "; ".join(" = ".join(images) for images in apart[:_LISTED])
            more = "; ..." if len(apart) > _LISTED else ""
            sets = "set" if len(apart) == 1 else "sets"
            lines.append(f"{len(apart)} {sets} of identical images in different {name}s ({why}): {named}{more}")
    return lines


def _notes(
    folder: Path,
    found: Found,
    pairs: Pairs,
    table: Labels,
    facts: list[Facts],
    labels: str | Path | None,
    columns: dict[str, list[Any]],
) -> list[str]:
    notes = list(table.notes)
    if labels is None and (tables := sorted(path.name for path in folder.glob("*.csv"))):
        notes.append(f"{tables[0]} lies in the folder; use it with --labels {tables[0]}")
    if table.rows and (bare := sum(f.image not in table.rows for f in facts)):
        notes.append(f"{bare} images are not in the CSV; they are kept without a label")
    if "split" in columns and (bare := columns["split"].count(None)):
        notes.append(f"{bare} images have no split; training and evaluation pass them over")
    if frames := sum(f.header.frames > 1 for f in facts):
        notes.append(f"{frames} files have several frames or pages; the first is used")
    if pairs.orphans:
        notes.append(f"{len(pairs.orphans)} masks have no image ({pairs.orphans[0]})")
    if pairs.several and "mask" not in table.columns:
        notes.append(f"{len(pairs.several)} images have several masks ({pairs.several[0]}); the first by name is used")
    if found.others:
        notes.append(f"{found.others} other files passed over")
    return notes
