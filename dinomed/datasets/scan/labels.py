"""Tables of labels in CSV, matched with the files of a folder."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dinomed.datasets.manifest import RESERVED
from dinomed.datasets.scan.file_search import FileSearch
from dinomed.datasets.scan.personal import is_personal
from dinomed.datasets.splits import split_name
from dinomed.datasets.tables import compose_letters, read_numbered_csv
from dinomed.errors import UsageError, did_you_mean

ROLES = ("label", "group", "mask", "split")
NONE = "none"
FRAME = "frame"
"""Column of the order of the images of a group."""
_MISSING = ("na", "n/a", "#n/a", "<na>", "nan", "nat", "null", "?")
"""Words that other programs write for a missing value."""
_MISSING_GROUP = (*_MISSING, "-", "none", "unknown")
_GROUP_LIKE = ("patient", "patient_id", "subject", "subject_id", "case_id", "study_id", "lesion", "lesion_id", "video")


@dataclass
class Labels:
    """A table of labels, matched with files.

    Attributes:
        rows: image -> value of each column.
        columns: names of the columns of `rows`.
        targets: files whose paths are in the other columns, such as depth maps.
        missing: images and masks without a file, as (name, reason).
    """

    path: Path | None = None
    rows: dict[str, dict[str, str | None]] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    targets: set[str] = field(default_factory=set)
    missing: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_labels(labels: str | Path, folder: Path, called: str = "labels") -> Path:
    """Return the path of the table: `labels` itself, or `labels` in the scanned folder.

    Args:
        labels: path of the table.
        folder: the scanned folder.
        called: name of the option, for the message.

    Raises:
        UsageError: neither exists.
    """
    for path in (Path(labels), folder / labels):
        if path.is_file():
            return path
    raise UsageError(f"{called} {labels} does not exist, and {folder / labels} does not exist either")


def read_labels(
    path: Path,
    folder: Path,
    files: list[str],
    images: list[str],
    *,
    image_column: str,
    roles: dict[str, str | None],
    keep: Sequence[str] = (),
    keep_ids: bool = False,
    videos: Sequence[str] = (),
) -> Labels:
    """Read a CSV with one row per image.

    The image column contains a path relative to `folder` or to the folder of the CSV, a file name, or a stem. A file
    name or a stem must be unique. Other columns of files contain paths only. Blanks around a name, its Unicode form and
    backslashes make no difference (`FileSearch`), nor does the Unicode form of the name of a column. Leading and
    trailing blanks of other cells are removed, and letters with accents are composed (NFC).

    Args:
        files: all image files below `folder`, including masks.
        images: the files that are searched for a file name or a stem.
        image_column: column with the names of the images.
        roles: for each of `ROLES` the name of its column, ``none`` for no column, or None for the column that has the
            name of the role (no column if there is none).
        keep: other columns to keep. Without it only the columns of roles, columns of paths of files (such as depth
            maps) and the column `frame` (numbers) are kept; a list of forbidden names would never be complete.
        videos: videos whose frames are images. A row names a frame (VIDEO/frame_000120), or a video for all its frames.
        keep_ids: allow columns in `keep` whose names are those of personal data (`dinomed.datasets.scan.personal`).

    Raises:
        UsageError: a column is missing (the message suggests a similar name), an image has two rows, or a value of the
            split column is not a split.
    """
    names, rows, numbers = read_numbered_csv(path)
    image_column, keep = compose_letters(image_column), [compose_letters(name) for name in keep]
    roles = {role: None if name is None else compose_letters(name) for role, name in roles.items()}
    out = Labels(path)
    search = FileSearch(folder, path.parent, files, images, videos)
    if image_column not in names and any(search.find(name)[0] for name in names):
        raise UsageError(
            f"{path}: its first row has the name of an image, but must have the names of the columns, such as "
            "image,label; add this row"
        )
    sources = _sources(path, names, image_column, roles)
    free = [name for name in names if name not in (image_column, *sources.values())]
    unused = [name for name in free if name in RESERVED and roles.get(name) != NONE]
    if unused:
        out.notes.append(f"columns of {path.name} that are not used: {', '.join(unused)}")
    free = [name for name in free if name not in RESERVED]
    known, index = set(files), {name: i for i, name in enumerate(names)}
    _check_keep(path, keep, names, keep_ids)
    columns = {name: _read_column(name, [row[index[name]] for row in rows], search, name in keep) for name in free}
    left_out = [name for name in free if columns[name] is None]
    if left_out:
        out.notes.append(
            f"columns of {path.name} that are not kept: {', '.join(left_out)}; keep one with `keep=COLUMN`, if it "
            "identifies nobody"
        )
    values_by_name = {name: values for name, values in columns.items() if values is not None}
    if (
        "group" not in sources
        and roles["group"] is None
        and (group_like := [n for n in names if n.lower() in _GROUP_LIKE])
    ):
        out.notes.append(
            f"column {group_like[0]!r} may be a group; to keep all images of a group in one split, use "
            f"`group={group_like[0]}`"
        )
    groups = _files_or_texts([row[index[sources["group"]]] for row in rows], search) if "group" in sources else []
    out.columns = [*sources, *values_by_name]
    row_numbers: dict[str, int] = {}
    for place, (number, cells) in enumerate(zip(numbers, rows, strict=True)):
        image_cell = cells[index[image_column]]
        if image_cell is None or not image_cell.strip():
            raise UsageError(f"{path}, row {number}: column {image_column!r} is empty")
        image, reason = search.find(image_cell)
        if image is None:
            out.missing.append((image_cell, f"in {path.name}, but {reason}"))
            continue
        if image in row_numbers:
            raise UsageError(f"{path}: image {image!r} in rows {row_numbers[image]} and {number}; keep one")
        row_numbers[image] = number
        row = {role: _text(cells[index[name]]) for role, name in sources.items()}
        if groups:
            row["group"] = groups[place]
        if (word := row.get("split")) is not None:
            row["split"] = _split(path, number, word)
        if (word := row.get("mask")) is not None:
            row["mask"], reason = search.find(cells[index[sources["mask"]]] or "", mask_of=image)
            if row["mask"] is None:
                out.missing.append((word, f"mask of {image} in {path.name}, but {reason}"))
        out.rows[image] = row | {name: values[place] for name, values in values_by_name.items()}
    for role in ("label", "group"):
        if role in sources:
            out.warnings += _alike(role, out.rows, row_numbers, personal=role == "group" and not keep_ids)
            out.warnings += _missing_words(role, out.rows, row_numbers)
    out.targets = {value for values in values_by_name.values() for value in values if value in known}
    return out


def _sources(path: Path, names: list[str], image_column: str, roles: dict[str, str | None]) -> dict[str, str]:
    """Return the column of each role."""
    columns_by_role = {"image": image_column} | {role: roles[role] for role in ROLES}
    for role, name in columns_by_role.items():
        if name not in names and (role == "image" or name not in (None, NONE)):
            argument = "image_column" if role == "image" else role
            raise UsageError(f"{path} has no column {name!r} (`{argument}`){did_you_mean(str(name), names)}")
    taken = {
        role: name
        for role in ROLES
        if (name := columns_by_role[role] or (role if role in names else None)) not in (None, NONE)
    }
    sources = {role: name for role, name in taken.items() if name}
    duplicates = [name for name, count in Counter([image_column, *sources.values()]).items() if count > 1]
    if duplicates:
        raise UsageError(f"{path}: column {duplicates[0]!r} has two roles; use it for one role only")
    return sources


def _split(path: Path, number: int, word: str) -> str:
    """Convert a cell of the split column to train, val or test."""
    split = split_name(word)
    if split is None:
        raise UsageError(
            f"{path}, row {number}: split {word!r} is not train, val or test; correct it, or make new splits "
            "with `split=none`"
        )
    return split


def _text(cell: str | None) -> str | None:
    """Remove leading and trailing blanks of a cell, and compose its letters; None for an empty cell."""
    return None if cell is None else compose_letters(cell.strip()) or None


def _files_or_texts(cells: Sequence[str | None], search: FileSearch) -> list[str | None]:
    """Return for each cell the file of the folder that it names by its path, or else its text."""
    values = {cell: (text := _text(cell)) and (search.path(cell or "", beside=False) or text) for cell in set(cells)}
    return [values[cell] for cell in cells]


def _alike(
    role: str, rows: dict[str, dict[str, str | None]], row_numbers: dict[str, int], *, personal: bool
) -> list[str]:
    """Warn if values of `role` differ only in case or blanks. For personal data the message has row numbers only."""
    seen: dict[str, dict[str, int]] = defaultdict(dict)
    for image, row in rows.items():
        if (value := row[role]) is not None:
            seen[" ".join(value.casefold().split())].setdefault(value, row_numbers[image])
    sets = [spellings for spellings in seen.values() if len(spellings) > 1]
    if not sets:
        return []
    examples = [f"row {number}" if personal else f"{value!r} (row {number})" for value, number in sets[0].items()]
    return [
        f"{len(sets)} {role}{'s' if len(sets) > 1 else ''} with spellings that differ only in upper and lower case or "
        "in blanks, counted as different: "
        f"{' and '.join(examples)}{', ...' if len(sets) > 1 else ''}; use one spelling if they are the same"
    ]


def _missing_words(role: str, rows: dict[str, dict[str, str | None]], row_numbers: dict[str, int]) -> list[str]:
    """Warn about labels and groups that are words for a missing value, such as NA."""
    words = _MISSING_GROUP if role == "group" else _MISSING
    places: dict[str, list[int]] = defaultdict(list)
    for image, row in rows.items():
        if (value := row[role]) is not None and value.casefold() in words:
            places[value].append(row_numbers[image])
    meaning = "one group" if role == "group" else "a class"
    return [
        f"{role} {value!r} of {len(numbers):,} image{'s' if len(numbers) > 1 else ''} (first in row {min(numbers)}) is "
        f"counted as {meaning}; leave the cell empty if it means that the {role} is not known"
        for value, numbers in places.items()
        if role == "label" or len(numbers) > 1
    ]


def _check_keep(path: Path, keep: Sequence[str], names: Sequence[str], keep_ids: bool) -> None:
    """Raise a `UsageError` for a column of `keep` that does not exist or that needs `keep_ids`."""
    for name in keep:
        if name not in names:
            raise UsageError(f"{path} has no column {name!r} (`keep`){did_you_mean(name, names)}")
        if is_personal(name) and not keep_ids:
            raise UsageError(f"`keep={name}`: a column of this name may identify patients; `keep_ids=True` keeps it")


def _read_column(name: str, cells: Sequence[str | None], search: FileSearch, keep: bool) -> list[str | None] | None:
    """Return the values of a column: paths of files, if every cell is one; texts, if it is to be kept or is the column
    `frame` with only numbers; else None.

    A cell without a folder and an extension may be a patient; no file beside the CSV makes it a path.
    """
    texts = [_text(cell) for cell in cells]
    if name == FRAME and any(texts) and all(re.fullmatch(r"\d+(\.\d*)?", text) for text in texts if text):
        return texts
    paths: dict[str, str] = {}
    for cell, text in zip(cells, texts, strict=True):
        if cell is None or text is None or cell in paths:
            continue
        path = search.path(cell, beside=any(mark in cell for mark in "/\\."))
        if path is None or path in search.videos:
            break
        paths[cell] = path
    else:
        if paths:
            return [paths.get(cell or "") for cell in cells]
    return _files_or_texts(cells, search) if keep else None
