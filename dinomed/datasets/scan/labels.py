"""The user's table of labels, matched to the files of a folder."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dinomed.datasets.manifest import RESERVED
from dinomed.datasets.scan.personal import is_personal
from dinomed.datasets.splits import split_name
from dinomed.datasets.tables import read_csv
from dinomed.errors import UsageError, did_you_mean

ROLES = ("label", "group", "mask", "split")
NONE = "none"
_GROUP_LIKE = ("patient", "patient_id", "subject", "subject_id", "case_id", "study_id", "lesion", "lesion_id", "video")


@dataclass
class Labels:
    """Rows by image; the columns that they have; files that other columns name (depth maps and the like).

    `missing` lists images and masks that no file is found for, as (name, reason).
    """

    path: Path | None = None
    rows: dict[str, dict[str, str | None]] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    targets: set[str] = field(default_factory=set)
    missing: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_labels(labels: str | Path, folder: Path) -> Path:
    """The table as given, else in the folder that is scanned."""
    for path in (Path(labels), folder / labels):
        if path.is_file():
            return path
    raise UsageError(f"labels {labels} does not exist, nor does {folder / labels}")


def read_labels(
    path: Path,
    folder: Path,
    files: list[str],
    images: list[str],
    *,
    image_column: str,
    roles: dict[str, str | None],
    keep_ids: bool = False,
) -> Labels:
    """Read a CSV with a row an image.

    An image is named by its path from `folder` or from the CSV's own folder, by its file name, or by its stem, if only
    one file has it. Cells are stripped of blanks around them, but for names of files.

    Args:
        files: all image files below `folder`, masks among them; `images`: those that names and stems may mean.
        roles: the column for each of `ROLES`: its name, ``none`` to use none, or None for the column of that name if
            it is there.
        keep_ids: keep columns that tell who somebody is (`dinomed.datasets.scan.personal`). Without, they are left out, and
            groups of such a column become numbers.

    Raises:
        UsageError: a column is missing (the nearest is named), an image has two rows, a split is no split.
    """
    names, rows = read_csv(path)
    out = Labels(path)
    sources = _sources(path, names, image_column, roles)
    free = [name for name in names if name not in (image_column, *sources.values())]
    clashes = [name for name in free if name in RESERVED and roles.get(name) != NONE]
    if clashes:
        out.notes.append(f"columns of {path.name} that are not used: {', '.join(clashes)}")
    free = [name for name in free if name not in RESERVED]
    if not keep_ids and (personal := [name for name in free if is_personal(name)]):
        out.notes.append(
            f"columns of {path.name} that may tell who a patient is are left out: {', '.join(personal)}; "
            "--keep-ids keeps them"
        )
        free = [name for name in free if name not in personal]
    if "group" not in sources and roles["group"] is None and (like := [n for n in names if n.lower() in _GROUP_LIKE]):
        out.notes.append(f"column {like[0]!r} looks like a group; keep its images in one split with --group {like[0]}")
    out.columns = [*sources, *free]
    place = _Places(folder, path.parent, files, images)
    known = set(files)
    index = {name: i for i, name in enumerate(names)}
    first: dict[str, int] = {}
    for number, cells in enumerate(rows, start=2):
        named = cells[index[image_column]]
        if named is None:
            raise UsageError(f"{path}, row {number}: column {image_column!r} is empty")
        image, reason = place.find(named)
        if image is None:
            out.missing.append((named, f"in {path.name}, but {reason}"))
            continue
        if image in first:
            raise UsageError(f"{path}: image {image!r} in rows {first[image]} and {number}; keep one")
        first[image] = number
        row = {role: _stripped(cells[index[name]], known) for role, name in sources.items()}
        if (word := row.get("split")) is not None:
            row["split"] = _split(path, number, word)
        if (word := row.get("mask")) is not None:
            row["mask"], reason = place.find(word, masks=True)
            if row["mask"] is None:
                out.missing.append((word, f"mask of {image} in {path.name}, but {reason}"))
        out.rows[image] = row | {name: _stripped(cells[index[name]], known) for name in free}
    for role, name in sources.items():
        if role in ("label", "group"):
            out.warnings += _alike(role, out.rows, first, secret=not keep_ids and is_personal(name))
    if "group" in sources and not keep_ids and is_personal(sources["group"]):
        _number_groups(out, sources["group"])
    out.targets = {cell for name in free for cells in rows if (cell := cells[index[name]]) and cell in known}
    return out


def _sources(path: Path, names: list[str], image_column: str, roles: dict[str, str | None]) -> dict[str, str]:
    """Which column plays which role."""
    asked = {"image": image_column} | {role: roles[role] for role in ROLES}
    for role, name in asked.items():
        if name not in names and (role == "image" or name not in (None, NONE)):
            option = "--image-column" if role == "image" else f"--{role}"
            raise UsageError(f"{path} has no column {name!r} ({option}){did_you_mean(str(name), names)}")
    taken = {
        role: name for role in ROLES if (name := asked[role] or (role if role in names else None)) not in (None, NONE)
    }
    sources = {role: name for role, name in taken.items() if name}
    twice = [name for name, count in Counter([image_column, *sources.values()]).items() if count > 1]
    if twice:
        raise UsageError(f"{path}: column {twice[0]!r} is asked to be two things at once")
    return sources


def _split(path: Path, number: int, word: str) -> str:
    split = split_name(word)
    if split is None:
        raise UsageError(f"{path}, row {number}: split {word!r} is not train, val or test; --split none makes new ones")
    return split


def _stripped(cell: str | None, known: set[str]) -> str | None:
    """A cell without blanks around it, unless a file is named just so."""
    return cell if cell is None or cell in known else cell.strip() or None


def _alike(role: str, rows: dict[str, dict[str, str | None]], first: dict[str, int], *, secret: bool) -> list[str]:
    """A line if values of `role` are equal but for case; `secret` ones are named by their rows alone."""
    seen: dict[str, dict[str, int]] = defaultdict(dict)
    for image, row in rows.items():
        if (value := row[role]) is not None:
            seen[value.casefold()].setdefault(value, first[image])
    sets = [spellings for spellings in seen.values() if len(spellings) > 1]
    if not sets:
        return []
    named = [f"row {number}" if secret else f"{value!r} (row {number})" for value, number in sets[0].items()]
    return [
        f"{len(sets)} {role}{'s are' if len(sets) > 1 else ' is'} written in upper and lower case, and taken for "
        f"different ones: {' and '.join(named)}{', ...' if len(sets) > 1 else ''}; "
        "write them alike if they are the same"
    ]


def _number_groups(out: Labels, column: str) -> None:
    """Numbers in place of groups that would tell who somebody is. A hash could be undone by trying all values."""
    groups = sorted({group for row in out.rows.values() if (group := row["group"]) is not None})
    numbers = {group: f"{i:0{len(str(len(groups)))}}" for i, group in enumerate(groups, start=1)}
    for row in out.rows.values():
        row["group"] = numbers.get(row["group"] or "")
    out.notes.append(
        f"groups are numbered, since {column!r} may tell who a patient is; --keep-ids stores them as they are written"
    )


class _Places:
    """Finds the file that a cell means."""

    def __init__(self, folder: Path, beside: Path, files: Iterable[str], images: Iterable[str]) -> None:
        self.folder, self.beside = os.path.abspath(folder), os.path.abspath(beside)
        self.files = set(files)
        self.by_name: dict[bool, dict[str, list[str]]] = {}
        for masks, paths in ((False, list(images)), (True, sorted(self.files.difference(images)))):
            names = self.by_name[masks] = defaultdict(list)
            for path in paths:
                names[PurePosixPath(path).name].append(path)
                if (stem := PurePosixPath(path).stem) != PurePosixPath(path).name:
                    names[stem].append(path)

    def find(self, named: str, masks: bool = False) -> tuple[str | None, str]:
        """The path from the folder, or None and why."""
        for text in (named, named.replace("\\", "/")):
            for base in (self.folder, self.beside):
                path = os.path.relpath(os.path.join(base, text), self.folder).replace(os.sep, "/")
                if path in self.files:
                    return path, ""
        same = self.by_name[masks].get(named, [])
        if len(same) == 1:
            return same[0], ""
        if same:
            return None, f"{len(same)} files are named so ({same[0]}, {same[1]}, ...)"
        outside = os.path.relpath(os.path.join(self.folder, named), self.folder).startswith("..")
        return None, "outside the folder" if outside else "there is no such image file"
