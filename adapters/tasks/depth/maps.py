"""Depth maps: the rows that have them, and reading at the size of the image or at the training size."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from dinomed.backbones.preprocessing import Preprocessing, pad_to_input
from dinomed.datasets.manifest import Manifest, leaves_root
from dinomed.datasets.tables import compose_letters
from dinomed.errors import DinomedError, UsageError
from dinomed.images.depthmap import read_depth
from dinomed.io.prefetch import prefetch
from dinomed.progress import bar


@dataclass(frozen=True)
class DepthSource:
    """The column of the depth maps, and the meaning of stored values.

    Attributes:
        column: column of the manifest with paths of depth maps.
        scale: depth of a stored value of 1, in `unit`.
        unit: name of the unit.
    """

    column: str = "depth"
    scale: float = 1.0
    unit: str = ""

    def usable(self, manifest: Manifest) -> Manifest:
        """Return the rows that have a depth map.

        Raises:
            UsageError: the column is missing or empty, or a path leaves the folder of the images.
        """
        if not manifest.has(self.column):
            raise UsageError(
                f"{manifest.called} has no depth maps in a column {self.column!r}; name it with the setting column, "
                f"or name them in a CSV (columns image and {self.column}; paths from the folder): "
                f"{manifest.scan_again('--labels FILE.csv')}"
            )
        cells = manifest.column(self.column)
        for cell in cells:
            if cell is not None and leaves_root(cell):
                raise UsageError(f"depth map {cell!r} leaves the folder of the images; paths are relative to it")
        return manifest.take([i for i, cell in enumerate(cells) if cell is not None])

    def read(self, manifest: Manifest, index: int) -> np.ndarray:
        """Read the depths of an image at its own size, float32 (H, W), nan where unknown."""
        size = (manifest.table["height"][index].as_py(), manifest.table["width"][index].as_py())
        return read_depth(
            manifest.root / manifest.table[compose_letters(self.column)][index].as_py(), self.scale, size=size
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the source as plain data."""
        return {"column": self.column, "scale": self.scale, "unit": self.unit}


def source_from(usage: Mapping[str, Any]) -> DepthSource:
    """Return the source that a bundle records."""
    return DepthSource(**{key: value for key, value in usage["depth"].items() if key not in ("low", "high")})


def shrink_depth(depth: np.ndarray, reading: Preprocessing) -> np.ndarray:
    """Resize a depth map as its image: the mean of the known depths in each new pixel; nan in the padding."""
    box = reading.box(depth.shape)
    known = (~np.isnan(depth)).astype(np.float32)
    total = cv2.resize(np.nan_to_num(depth) * known, (box.width, box.height), interpolation=cv2.INTER_AREA)
    share = cv2.resize(known, (box.width, box.height), interpolation=cv2.INTER_AREA)
    small = np.where(share > 1e-3, total / np.maximum(share, 1e-3), np.float32(np.nan)).astype(np.float32)
    return pad_to_input(small, box, reading.input_size(depth.shape), np.nan)


class DepthMaps:
    """All depth maps of a split at the training size, float32."""

    def __init__(self, manifest: Manifest, source: DepthSource, reading: Preprocessing, split: str) -> None:
        self.low, self.high = float("inf"), 0.0
        maps: list[np.ndarray] = []
        with bar(f"depth maps of {split}", len(manifest)) as progress:
            for depth in prefetch(lambda i: source.read(manifest, i), range(len(manifest)), None):
                if not np.isnan(depth).all():
                    self.low, self.high = (
                        min(self.low, float(np.nanmin(depth))),
                        max(self.high, float(np.nanmax(depth))),
                    )
                maps.append(shrink_depth(depth, reading))
                progress.advance()
        if not self.low < self.high:
            content = "no pixel of known depth" if not self.high else f"only one depth ({self.high:g})"
            raise DinomedError(f"the depth maps of {split} have {content}; check the setting scale")
        self._maps = maps

    def take(self, indices: Sequence[int]) -> Tensor:
        """Return the maps of some images of one size, float32 (n, 1, height, width), nan where unknown."""
        return torch.from_numpy(np.stack([self._maps[index] for index in indices])[:, None])

    def digest(self) -> bytes:
        """Return the SHA-256 of all maps."""
        return hashlib.sha256(b"".join(depth.tobytes() for depth in self._maps)).digest()
