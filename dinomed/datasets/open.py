"""Images for use, however they are given; what cannot be read is told and not hidden."""

from dataclasses import replace
from pathlib import Path

from dinomed.datasets.manifest import Manifest, open_collection
from dinomed.datasets.scan.scan import scan


def collect(path: str | Path) -> tuple[Manifest, list[tuple[str, str]]]:
    """A manifest of a folder, an image or a manifest, and (path, reason) of the files of a folder that are refused.

    Raises:
        UsageError: nothing is there, or no image in it can be read.
        DinomedError: a single image cannot be read, or a manifest is damaged.
    """
    if Path(path).is_dir():
        result = scan(path, make_split=False, allow_unreadable=True)
        return replace(result.manifest, source=Path(path)), result.unreadable
    return open_collection(path), []
