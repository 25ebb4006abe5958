"""The base class of prediction writers: table rows, and for dense tasks a file for each image."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from torch import Tensor

Row = list[Any]


@dataclass(frozen=True)
class SheetEntry:
    """What a contact sheet shows of the prediction for an image.

    Attributes:
        text: the result in a few words.
        uncertainty: 0 to 1, by which images are sorted.
        area: share of the image that is outlined, 0 to 1; None for a task without masks.
        read_mask: reads the outlined pixels, bool (H, W), from the written file.
    """

    text: str
    uncertainty: float
    area: float | None = None
    read_mask: Callable[[], np.ndarray] | None = None


class PredictionWriter(ABC):
    """Writes the predictions of a collection into a folder.

    Args:
        names: relative paths of the images.
        columns: columns of the table after the image's path.
        files: relative path of the file of each image; empty where only rows are written.
        extra_files: further files, which `write_extra_files` writes.
        settings: settings that decide over the result, for the plan of the prediction.
    """

    def __init__(
        self,
        names: Sequence[str],
        columns: Sequence[str],
        files: Sequence[str] = (),
        extra_files: Sequence[str] = (),
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.names, self.columns, self.files, self.extra_files = names, columns, files, extra_files
        self.settings = settings or {}

    def write_extra_files(self, out: Path) -> None:  # noqa: B027 (most tasks write none)
        """Write the files of `extra_files`."""

    def sheet_entry(self, row: Row, out: Path) -> SheetEntry | None:
        """Return what the contact sheet shows of an image; None for a task without a sheet.

        Args:
            row: a row of the table, which begins with the cells of `write_batch`.
            out: output folder.
        """
        return None

    @abstractmethod
    def write_batch(
        self, indices: Sequence[int], pixels: Tensor, sizes: Sequence[tuple[int, int]], out: Path
    ) -> list[Row]:
        """Write the files of a batch, then return its rows.

        Args:
            indices: places of the images in `names`.
            pixels: the images as `Predictor.preprocessing` prepares them.
            sizes: height and width of each image, px.
            out: output folder.
        """


def file_names(images: Sequence[str], suffix: str = ".png") -> list[str]:
    """Return a relative path for each image: its own with the suffix .png.

    Where two images would share a path, as a.jpg and a.png do, both keep their whole name: a.jpg.png, a.png.png.

    >>> file_names(["x/a.jpg", "b.jpg", "b.png"])
    ['x/a.png', 'b.jpg.png', 'b.png.png']
    """
    whole = [False] * len(images)
    while True:
        names = [
            image + suffix if keep else str(PurePosixPath(image).with_suffix(suffix))
            for image, keep in zip(images, whole, strict=True)
        ]
        counts = Counter(name.casefold() for name in names)  # some file systems know no case
        clash = [counts[name.casefold()] > 1 and not keep for name, keep in zip(names, whole, strict=True)]
        if not any(clash):
            return names
        whole = [keep or new for keep, new in zip(whole, clash, strict=True)]
