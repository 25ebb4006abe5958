"""The images to predict, however they are given; what earlier predictions wrote is not among them."""

from pathlib import Path, PurePosixPath

from dinomed.adapters.plan import PLAN_FILE, read_plan
from dinomed.datasets.manifest import Manifest, open_collection
from dinomed.datasets.scan import scan
from dinomed.errors import DinomedError, UsageError


def find_images(path: str | Path) -> tuple[Manifest, list[tuple[str, str]]]:
    """A manifest of a folder, an image or a manifest, and (path, reason) of the files of a folder that are refused.

    Folders that hold a prediction are passed over, since its masks are pictures too. Masks that lie beside the images
    are no images either; they are not looked at.

    Raises:
        UsageError: nothing is there, or no image in it can be read.
        DinomedError: a single image cannot be read, or a manifest is damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        return open_collection(folder), []
    result = scan(folder, make_split=False, mask="none", allow_unreadable=True)
    images = result.manifest.column("image")
    ours = _predictions(folder, [*images, *(name for name, _ in result.unreadable)])
    kept = [i for i, image in enumerate(images) if not _is_below(image, ours)]
    if not kept:
        raise UsageError(f"folder {folder} holds no image but what an earlier prediction wrote")
    unreadable = [(name, reason) for name, reason in result.unreadable if not _is_below(name, ours)]
    return result.manifest.take(kept), unreadable


def _predictions(folder: Path, files: list[str]) -> set[str]:
    """Those folders above `files`, and below `folder`, that a prediction was written to."""
    above = {str(parent) for file in files for parent in PurePosixPath(file).parents} - {"."}
    return {name for name in above if _holds_prediction(folder / name)}


def _holds_prediction(folder: Path) -> bool:
    try:
        return (folder / PLAN_FILE).is_file() and read_plan(folder) is not None
    except DinomedError:
        return False


def _is_below(file: str, folders: set[str]) -> bool:
    return any(str(parent) in folders for parent in PurePosixPath(file).parents)
