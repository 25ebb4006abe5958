"""What a prediction is going to write, noted before it begins: so that it can be gone on with after an interruption,
and removed later without touching a file of anybody else's.

`predictions.json` is the plan, with ``"complete": false`` until all of it is there. Meanwhile the rows of the table
gather in `predictions.partial.jsonl`, each written after the mask that it names.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dinomed.datasets.manifest import leaves_root
from dinomed.datasets.scan.predictions import PLAN_FILE
from dinomed.errors import DinomedError, UsageError
from dinomed.io.files import read_json, to_json, write_json, write_text
from dinomed.notice import RESEARCH_USE

TABLE_FILE, FAILED_FILE = "predictions.csv", "unreadable.csv"
ROWS_FILE = "predictions.partial.jsonl"
FORMAT = "dinomed.predictions/1"
Row = list[Any]


@dataclass(frozen=True)
class PredictionPlan:
    """`settings` tell what makes the result, and of which images; `masks` are paths relative to the folder."""

    settings: dict[str, Any]
    masks: tuple[str, ...]
    complete: bool = False

    def write(self, folder: Path) -> None:
        head = {"format": FORMAT, "purpose": RESEARCH_USE, "complete": self.complete}
        write_json(folder / PLAN_FILE, head | {"settings": self.settings, "masks": self.masks})


def read_plan(folder: Path) -> PredictionPlan | None:
    """The plan of a folder that a prediction has written to; None if there is none.

    Raises:
        DinomedError: it is damaged, of another version, or names files outside the folder.
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
    """Write `plan` into `folder`; rows by image that an interrupted run of the same plan has left there.

    With `overwrite` what an earlier plan lists is removed, and nothing else.

    Raises:
        UsageError: the folder holds a result, or an unfinished one of another plan, or another file where a mask would
            go.
    """
    old = read_plan(folder)
    if old is not None and not overwrite:
        if old.complete:
            raise UsageError(f"output folder {folder} already holds a result; add --overwrite to replace it")
        if old != plan:
            raise UsageError(
                f"output folder {folder} holds an unfinished prediction by another adapter or of other images; "
                "add --overwrite to replace it"
            )
        return _read_rows(folder, plan)
    owned = set() if old is None else set(old.masks)
    taken = next((mask for mask in plan.masks if mask not in owned and (folder / mask).exists()), None)
    if taken is not None:
        raise UsageError(f"{folder / taken} is in the way, and no earlier prediction wrote it; choose another folder")
    if old is not None:
        replace(old, complete=False).write(folder)  # if this is cut off, nobody takes the rest for the whole
        for name in (*old.masks, TABLE_FILE, FAILED_FILE, ROWS_FILE):
            (folder / name).unlink(missing_ok=True)
    plan.write(folder)
    return {}


def add_rows(folder: Path, rows: Sequence[Row]) -> None:
    """Note rows whose masks are written."""
    try:
        with open(folder / ROWS_FILE, "a", encoding="utf-8") as file:
            file.write("".join(to_json(row) + "\n" for row in rows))
    except OSError as error:
        raise DinomedError(f"cannot write {folder / ROWS_FILE}: {error.strerror or error}") from None


def finish(folder: Path, plan: PredictionPlan) -> None:
    """Everything is written: say so, and drop the rows, which are in the table now."""
    replace(plan, complete=True).write(folder)
    (folder / ROWS_FILE).unlink(missing_ok=True)


def _read_rows(folder: Path, plan: PredictionPlan) -> dict[str, Row]:
    """The whole rows, whose masks are there; a line that was cut off is removed, so that the next is not part of it."""
    path = folder / ROWS_FILE
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.exists() else []
    rows = [row for line in lines if isinstance(row := _parse(line), list) and row]
    if plan.masks:
        rows = [row for row in rows if len(row) > 1 and row[1] in plan.masks and (folder / row[1]).is_file()]
    write_text(path, "".join(to_json(row) + "\n" for row in rows))
    return {str(row[0]): row for row in rows}


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
