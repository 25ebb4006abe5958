"""Folders that `dinomed predict` wrote: their masks are images too, but must not be taken for training data."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from dinomed.errors import DinomedError
from dinomed.io.files import read_json

PLAN_FILE = "predictions.json"
_FORMAT = "dinomed.predictions/"


def find_predictions(root: Path, files: Iterable[str]) -> dict[str, list[str]]:
    """Find the folders below `root` that hold a prediction.

    The root itself does not count: a user who names it wants its files.

    Args:
        files: paths relative to `root`.

    Returns:
        Folder -> the `files` in it.
    """
    files_by_folder: dict[str, list[str]] = {}
    is_prediction: dict[str, bool] = {}
    for file in files:
        for parent in map(str, PurePosixPath(file).parents):
            if parent == ".":
                continue
            if parent not in is_prediction:
                is_prediction[parent] = _holds_prediction(root / parent)
            if is_prediction[parent]:
                files_by_folder.setdefault(parent, []).append(file)
                break
    return files_by_folder


def _holds_prediction(folder: Path) -> bool:
    path = folder / PLAN_FILE
    try:
        data = read_json(path) if path.is_file() else None
    except DinomedError:  # another tool's, or a damaged one
        return False
    return isinstance(data, dict) and str(data.get("format", "")).startswith(_FORMAT)
