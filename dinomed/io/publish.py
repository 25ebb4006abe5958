"""Moving of the files of a result from the stage of an output folder to their places, also after a kill."""

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePath

from dinomed.errors import DinomedError, system_reason
from dinomed.io.files import read_json, sync, write_json

READY_FILE = "ready.json"
"""File in the stage of a complete result: the files that are yet to be moved or removed."""


def publish(stage: Path, folder: Path, names: Iterable[str], remove: Iterable[str] = ()) -> None:
    """Move files from `stage` to the same relative paths below `folder`, in the order given: the file that makes the
    result valid goes last (or first, where the others only describe it). Then remove the stage.

    The stage lists the files first, so that the next call on the folder completes what a killed call has begun.

    Args:
        stage: the stage of `folder`.
        folder: output folder.
        names: paths of the files, relative to the stage.
        remove: names of files of an older result that must not stand beside the new one; removed before the move,
            and their folders after it where nothing is left in them.

    Raises:
        DinomedError: a file is missing or cannot be moved, such as on a full disk, or a path is not inside the folder.
    """
    list_ready(stage, folder, names, remove)
    move_ready(stage, folder)


def list_ready(stage: Path, folder: Path, names: Iterable[str], remove: Iterable[str] = ()) -> None:
    """Write the list of the files that `move_ready` moves and removes; arguments and errors are those of `publish`."""
    names, remove = list(names), list(remove)
    outside = next((name for name in (*names, *remove) if not _is_inside(name)), None)
    if outside is not None:
        raise DinomedError(f"cannot write {folder}: {outside!r} is not a path inside it")
    missing = next((name for name in names if not (stage / name).exists()), None)
    if missing is not None:
        raise DinomedError(f"cannot write {folder}: {stage / missing} is missing; run the command again")
    write_json(stage / READY_FILE, {"move": names, "remove": remove})


def move_ready(stage: Path, folder: Path) -> None:
    """Move and remove what the stage lists and what was not yet moved, and remove the stage, its list last."""
    try:
        names, remove = _read_ready(stage)
        new = set(names)
        for name in remove:
            if name not in new or (stage / name).exists():  # otherwise the file in the folder is the new one
                (folder / name).unlink(missing_ok=True)
        for name in names:
            if (stage / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(stage / name, folder / name)
        for parent in (parent for name in remove for parent in PurePath(name).parents[:-1]):
            with contextlib.suppress(OSError):  # it holds other files
                (folder / parent).rmdir()
        sync(folder)
        for path in stage.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != READY_FILE:
                path.unlink()
        (stage / READY_FILE).unlink()
        stage.rmdir()
    except OSError as error:
        raise DinomedError(f"cannot write {folder}: {system_reason(error)}") from None


def _read_ready(stage: Path) -> tuple[list[str], list[str]]:
    """Return the files to be moved and to be removed.

    Raises:
        DinomedError: the list is damaged, or names a file outside the folder.
    """
    data = read_json(stage / READY_FILE)
    try:
        names, remove = list(data["move"]), list(data["remove"])
        if all(_is_inside(name) for name in (*names, *remove)):
            return names, remove
    except (KeyError, TypeError):
        pass
    raise DinomedError(f"{stage / READY_FILE} is damaged; remove {stage}, and run the command again")


def _is_inside(name: str) -> bool:
    """Return whether a relative path stays inside its folder, by its text alone."""
    path = PurePath(name)
    return not path.anchor and ".." not in path.parts
