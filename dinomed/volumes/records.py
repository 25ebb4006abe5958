"""The file `volumes.json` of a folder of slices: the geometry of each volume, without its name and its patient."""

import hashlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from dinomed.config import Config, build_config
from dinomed.errors import UsageError
from dinomed.io.files import read_json
from dinomed.volumes.geometry import Axis, Grid
from dinomed.volumes.read import Volume

VOLUMES_FILE = "volumes.json"
Row = Annotated[tuple[float, ...], Field(min_length=4, max_length=4)]


class VolumeRecord(Config):
    """The geometry of a volume, and of a DICOM series the checksum of its values (`digest_of`); see `Volume`."""

    shape: tuple[int, int, int]
    affine: Annotated[tuple[Row, ...], Field(min_length=4, max_length=4)]
    header: dict[str, Any] | None
    values_sha256: str | None = None

    @property
    def grid(self) -> Grid:
        """The geometry."""
        return Grid(self.shape, np.array(self.affine, np.float64))


class SlicesRecord(Config):
    """The volumes of a folder of slices, by the names of the manifest."""

    axis: Axis
    volumes: dict[str, VolumeRecord]

    def count_slices(self, volume: str) -> int:
        """Return the number of slices of a volume."""
        grid = self.volumes[volume].grid
        return grid.shape[grid.picture_axes(self.axis)[0][0]]


def slice_name(volume: str, number: int) -> str:
    """Return the path of a slice, relative to the output folder."""
    return f"{volume}/{number:05}.png"


def record_of(volume: Volume) -> dict[str, Any]:
    """Return the record of a volume, of JSON types."""
    digest = digest_of(volume.values) if volume.header is None else None
    return {
        "shape": list(volume.grid.shape), "affine": volume.grid.affine.tolist(), "header": volume.header,
        "values_sha256": digest,
    }  # fmt: skip


def digest_of(values: np.ndarray) -> str:
    """Return the SHA-256 of the values of a volume, (I, J, K) float32, by which its series is found again."""
    return hashlib.sha256(np.ascontiguousarray(values.T, "<f4").data).hexdigest()


def read_record(folder: Path) -> SlicesRecord:
    """Read the record of a folder that `dinomed slices` wrote.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    path = folder / VOLUMES_FILE
    if not path.is_file():
        raise UsageError(
            f"{folder} holds no {VOLUMES_FILE}; give the manifest.csv of a folder that `dinomed slices` wrote"
        )
    return build_config(SlicesRecord, read_json(path), str(path))
