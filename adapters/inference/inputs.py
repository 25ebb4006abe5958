"""The images to predict, however they are given; what earlier predictions wrote is not among them."""

from pathlib import Path

from dinomed.datasets.manifest import Manifest, open_collection
from dinomed.datasets.scan.scan import scan


def find_images(path: str | Path) -> tuple[Manifest, list[tuple[str, str]]]:
    """A manifest of a folder, an image or a manifest, and (path, reason) of the files of a folder that are refused.

    Folders that hold a prediction are passed over, since its masks are pictures too (`dinomed.datasets.scan.predictions`).
    Masks that lie beside the images are no images either; they are not looked at.

    Raises:
        UsageError: nothing is there, or no image in it can be read.
        DinomedError: a single image cannot be read, or a manifest is damaged.
    """
    if not Path(path).is_dir():
        return open_collection(path), []
    result = scan(path, make_split=False, mask="none", allow_unreadable=True)
    return result.manifest, result.unreadable
