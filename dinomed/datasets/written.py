"""Written pictures: their rows, and those of an earlier result that is replaced."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dinomed.burned_in_text.mask import MASKED_COLUMN, TextMask
from dinomed.datasets.manifest import read_manifest
from dinomed.errors import DinomedError, UsageError
from dinomed.images.intensity import SEPARATE_CHANNELS
from dinomed.log import logger


@dataclass
class WrittenPictures:
    """The rows of the manifest of written pictures while they grow, and the problems of their sources.

    Attributes:
        mask: masks text in the pictures; the column `masked_text` has the number of regions of each.
        separate: whether the three channels of a picture are no colours (`SEPARATE_CHANNELS`).
        columns: column of the manifest -> its values.
        problems: (path, reason) of what could not be used.
    """

    mask: TextMask | None = None
    separate: bool = False
    columns: dict[str, list[Any]] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def write(self, stage: Path, name: str, pixels: np.ndarray, cells: Mapping[str, str | None]) -> None:
        """Write a picture, uint8 (H, W) or (H, W, 3), as a PNG file `name` in `stage`, and add its row with `cells`."""
        masked: dict[str, str] = {}
        if self.mask is not None:
            pixels, regions = self.mask.count(pixels, separate=self.separate)
            masked = {MASKED_COLUMN: str(regions)}
        content = encode_png(pixels, separate=self.separate)
        (stage / name).write_bytes(content)
        is_gray = pixels.ndim == 2
        row = {
            "image": name, "sha256": hashlib.sha256(content).hexdigest(), "width": pixels.shape[1],
            "height": pixels.shape[0], "mode": "L" if is_gray else "RGB", "format": "PNG", "bytes": len(content),
            "channels": 1 if is_gray else 3, "bits": 8, **cells, **masked,
        }  # fmt: skip
        for column, value in row.items():
            self.columns.setdefault(column, []).append(value)

    def report(self, path: str | Path, reason: str) -> None:
        """Warn that something cannot be used, and keep it for the result."""
        logger.warning(f"{path}: {reason}")
        self.problems.append((str(path), reason))


def encode_png(pixels: np.ndarray, *, separate: bool = False) -> bytes:
    """Return the PNG file of a picture (H, W) or (H, W, 3), with a mark if its channels are `separate`."""
    file, info = io.BytesIO(), PngInfo()
    if separate and pixels.ndim == 3:
        info.add_text(SEPARATE_CHANNELS, "1")
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=3, pnginfo=info)
    return file.getvalue()


def earlier_pictures(
    out: Path, tables: tuple[str, str], folder: str, number: str, digits: int, mark: str, command: str
) -> list[str]:
    """Return the pictures FOLDER/NUMBER.png of an earlier result in an output folder, by its manifest.

    Args:
        out: output folder.
        tables: names of the files that show an earlier result, the manifest first.
        folder: column with the folder of a picture.
        number: column with the number of a picture.
        digits: of the number in the name of the file.
        mark: a further column that the command writes.
        command: the command, for the message.

    Raises:
        UsageError: the tables in the folder are not those of an earlier result of the command.
    """
    present = [name for name in tables if (out / name).exists()]
    if not present:
        return []
    try:
        manifest = read_manifest(out / tables[0], root=out)
        is_ours = len(present) == 2 and {folder, number, mark} <= set(manifest.columns)
    except DinomedError:
        is_ours = False
    if not is_ours:
        raise UsageError(
            f"output folder {out} holds a {present[0]} that `dinomed {command}` did not write; choose another folder"
        )
    rows = zip(*(manifest.column(name) for name in ("image", folder, number)), strict=True)
    written = [(name, f"{place}/{str(count).zfill(digits)}.png") for name, place, count in rows]
    return [name for name, ours in written if name == ours and name.count("/") == 1]
