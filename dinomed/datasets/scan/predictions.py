"""What `dinomed predict` wrote: its masks are pictures too, and none to learn from by accident."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from dinomed.errors import DinomedError
from dinomed.io.files import read_json

PLAN_FILE = "predictions.json"
_FORMAT = "dinomed.predictions/"


def find_predictions(root: Path, files: Iterable[str]) -> dict[str, list[str]]:
    """The folders below `root` that a prediction was written to, each with those of `files` that lie in it.

    Files are paths relative to `root`. The root itself is none: who names it wants what is there.
    """
    found: dict[str, list[str]] = {}
    known: dict[str, bool] = {}
    for file in files:
        for parent in map(str, PurePosixPath(file).parents):
            if parent == ".":
                continue
            if parent not in known:
                known[parent] = _holds_prediction(root / parent)
            if known[parent]:
                found.setdefault(parent, []).append(file)
                break
    return found


def _holds_prediction(folder: Path) -> bool:
    path = folder / PLAN_FILE
    try:
        data = read_json(path) if path.is_file() else None
    except DinomedError:  # another tool's, or a damaged one
        return False
    return isinstance(data, dict) and str(data.get("format", "")).startswith(_FORMAT)
