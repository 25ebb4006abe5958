"""The plan of a prediction: the files that it will write, saved before it starts.

With the plan an interrupted prediction is resumed, and an earlier result is removed without other files.
`predictions.json` is the plan, with ``"complete": false`` until all files are written. Until then
`predictions.partial.jsonl` holds the finished rows of the table, each written after its mask. It and other files of
finished images (`PARTIAL_FILES`) are removed after the plan is complete.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dinomed.adapters.writer import Row
from dinomed.datasets.manifest import leaves_root
from dinomed.datasets.predictions import PLAN_FILE
from dinomed.errors import DinomedError, UsageError, system_reason
from dinomed.io.files import read_json, to_json, write_json, write_text
from dinomed.notice import RESEARCH_USE

TABLE_FILE, FAILED_FILE = "predictions.csv", "unreadable.csv"
SHEET_FILE = "index.html"
ROWS_FILE = "predictions.partial.jsonl"
OBJECTS_FILE = "coco.partial.jsonl"
PARTIAL_FILES = (ROWS_FILE, OBJECTS_FILE)
"""Files of an unfinished prediction: its rows, and its COCO objects."""
FORMAT = "dinomed.predictions/1"


@dataclass(frozen=True)
class PredictionPlan:
    """The plan of a prediction.

    Attributes:
        settings: adapter, images and settings that decide over the result.
        masks: paths of the files, relative to the folder.
        complete: whether all files are written.
    """

    settings: dict[str, Any]
    masks: tuple[str, ...]
    complete: bool = False

    @property
    def is_of_videos(self) -> bool:
        """Whether it is the plan of a prediction of videos (`dinomed.adapters.video.run`)."""
        return "videos" in self.settings

    def write(self, folder: Path) -> None:
        """Write the plan to `predictions.json`."""
        head = {"format": FORMAT, "purpose": RESEARCH_USE, "complete": self.complete}
        write_json(folder / PLAN_FILE, head | {"settings": self.settings, "masks": self.masks})


def read_plan(folder: Path) -> PredictionPlan | None:
    """Read the plan of a folder. Return None if there is none.

    Raises:
        DinomedError: the plan is damaged, of another version, or names files outside the folder.
    """
    path = folder / PLAN_FILE
    if not path.is_file():
        return None
    data = read_json(path)
    try:
        if data["format"] != FORMAT or any(leaves_root(mask) for mask in data["masks"]):
            raise ValueError
        return PredictionPlan(dict(data["settings"]), tuple(data["masks"]), data["complete"] is True)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DinomedError(f"{path} is no plan of this version of dinomed; choose another output folder") from None


def begin(folder: Path, plan: PredictionPlan, *, overwrite: bool) -> dict[str, Row]:
    """Write `plan` into `folder`, and return the finished rows of an interrupted call with the same plan, by image.

    With `overwrite`, the files of an earlier plan are removed, and no others.

    Raises:
        UsageError: the folder holds a result, an unfinished prediction with another plan, or another file at the path
            of a mask or of a table.
    """
    old = read_plan(folder)
    if old is not None and not overwrite:
        if old.complete:
            _remove_partial_files(folder)  # of a call that was killed just after its result was complete
            raise UsageError(f"output folder {folder} already holds a result; add `overwrite=True` to replace it")
        if old != plan:
            raise UsageError(
                f"output folder {folder} holds an unfinished prediction by another adapter or of other images; "
                "add `overwrite=True` to replace it"
            )
        return _read_rows(folder, plan)
    owned = own_files(folder, old)
    check_not_taken(folder, [*plan.masks, TABLE_FILE, FAILED_FILE, *PARTIAL_FILES], owned)
    if old is not None:
        replace(old, complete=False).write(folder)  # after an interruption the rest is not taken for a complete result
        for name in owned:
            (folder / name).unlink(missing_ok=True)
    plan.write(folder)
    return {}


def own_files(folder: Path, plan: PredictionPlan | None) -> list[str]:
    """Return the files of the prediction with `plan`, of images or videos, in `folder`; some may not exist."""
    if plan is None:
        return []
    if plan.is_of_videos:  # its tables are in the folders of the videos, and among `masks`
        return list(plan.masks)
    sheet = [SHEET_FILE] if is_own_sheet(folder) else []
    return [*plan.masks, TABLE_FILE, FAILED_FILE, *PARTIAL_FILES, *sheet]


def check_not_taken(folder: Path, names: Iterable[str], owned: Iterable[str]) -> None:
    """Raise a `UsageError` if a file that will be written exists, and is not one of `owned`, which are replaced."""
    mine = set(owned)
    taken = next((name for name in names if name not in mine and (folder / name).exists()), None)
    if taken is not None:
        raise UsageError(f"{folder / taken} is in the way, and no earlier prediction wrote it; choose another folder")


def is_own_sheet(folder: Path) -> bool:
    """Return whether the folder holds a page that dinomed wrote."""
    path = folder / SHEET_FILE
    return path.is_file() and b'name="generator" content="dinomed"' in path.read_bytes()[:1024]


def check_sheet(folder: Path) -> None:
    """Raise a `UsageError` if a page that dinomed did not write is at the place of the contact sheet."""
    path = folder / SHEET_FILE
    if path.exists() and not is_own_sheet(folder):
        raise UsageError(
            f"{path} is in the way, and dinomed did not write it; choose another folder, or add `sheet=False`"
        )


def add_rows(folder: Path, rows: Sequence[Row]) -> None:
    """Save rows whose masks are written."""
    try:
        with open(folder / ROWS_FILE, "a", encoding="utf-8") as file:
            file.write("".join(to_json(row) + "\n" for row in rows))
    except OSError as error:
        raise DinomedError(f"cannot write {folder / ROWS_FILE}: {system_reason(error)}") from None


def finish(folder: Path, plan: PredictionPlan) -> None:
    """Mark the plan as complete, with the files that were written, and remove the partial files.

    An image that cannot be read, or a volume of which a slice has no prediction, has no file.
    """
    written = tuple(mask for mask in plan.masks if (folder / mask).is_file())
    replace(plan, masks=written, complete=True).write(folder)
    _remove_partial_files(folder)


def _remove_partial_files(folder: Path) -> None:
    for name in PARTIAL_FILES:
        (folder / name).unlink(missing_ok=True)


def _read_rows(folder: Path, plan: PredictionPlan) -> dict[str, Row]:
    """Read the complete rows whose masks exist; an incomplete last line is removed before more rows are added."""
    path = folder / ROWS_FILE
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.exists() else []
    rows = [row for line in lines if isinstance(row := _parse(line), list) and row]
    if files := set(plan.masks):
        rows = [row for row in rows if len(row) > 1 and row[1] in files and _are_there(folder, row, files)]
    write_text(path, "".join(to_json(row) + "\n" for row in rows))
    return {str(row[0]): row for row in rows}


def _are_there(folder: Path, row: Row, files: set[str]) -> bool:
    """Return whether all files of a row exist: its mask and, if it has one, its DICOM segmentation."""
    return all((folder / cell).is_file() for cell in row[1:] if isinstance(cell, str) and cell in files)


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
