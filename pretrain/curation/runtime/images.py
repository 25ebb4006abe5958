"""Reading images and naming files inside the work of a stage."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from dinomed.datasets.pixels import read_picture
from dinomed.errors import DinomedError
from dinomed.images.read import UnreadableImage

BATCH = 16
"""Images that one thread reads and processes at a time; the batch size of networks."""


def reread_image(path: str, read: Callable[[str], np.ndarray] = read_picture) -> np.ndarray:
    """Read an image that an earlier stage has read; by default its picture, uint8 RGB (H, W, 3).

    Raises:
        DinomedError: the image cannot be read any more.
    """
    try:
        return read(path)
    except UnreadableImage as error:
        raise DinomedError(
            f"{error}; an earlier stage could read it: run the curation again with `overwrite=True`"
        ) from None


def batches(paths: Sequence[str]) -> Iterator[list[str]]:
    """Yield the paths in batches of `BATCH`."""
    return (list(paths[start : start + BATCH]) for start in range(0, len(paths), BATCH))


def absolute_name(path: Path) -> str:
    """Return the absolute path of a file, which workers on other machines can open."""
    return str(path.resolve())
