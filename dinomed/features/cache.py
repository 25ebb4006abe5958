"""The feature cache: frozen features on disk, in shards with a key and checksums.

The features of one key lie in one folder. Shard 7 is an artifact (`dinomed.io.artifacts`) of `00007.cls.npy` and
`00007.mean.npy` (float32), with patch tokens also `00007.patches.npy` (float16), and its record `00007.json`.

Patch tokens are float16, since they need a hundred times as much space as class tokens. float16 rounds to about 1 part
in 2,000, which is less than the noise in the training of the layer that reads them. Patch tokens come out of a
LayerNorm, so they stay in the range of float16.

Where images are rectangles (`aspect` keep), `00007.grid.npy` (int16) has the rows and columns of patches of each image,
and the grids of patch tokens are filled with zeros to the largest one of the shard.
"""

import errno
import os
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dinomed.config import Config
from dinomed.errors import DinomedError
from dinomed.io.artifacts import ArtifactFolder, hash_key

FORMAT = "dinomed.features/2"
Kind = Literal["cls", "mean", "patches", "grid"]
DTYPES = {"cls": np.float32, "mean": np.float32, "patches": np.float16, "grid": np.int16}
CACHE_NAME = re.compile(r"[0-9a-f]{16}")
"""Name of the folder of the features of one key."""
_FILE_NAME = re.compile(r"\d{5,}\.(?:json|(?:cls|mean|patches|grid)\.npy)|\.lock|\.tmp-.*")


class FeatureKey(Config):
    """Everything that the features depend on.

    Attributes:
        backbone: fingerprint of the backbone: its weights, its architecture, and its preprocessing with the image size.
        images: fingerprint of the manifest.
        count: number of images.
        blocks: blocks counted from 0, in the order in which they are concatenated.
        patches: whether patch tokens are kept.
        shard_size: images in a shard.
        rectangles: whether images have grids of different shapes. It does not count for the key where it is False.
    """

    format: str = FORMAT
    backbone: str
    images: str
    count: int
    blocks: tuple[int, ...]
    patches: bool
    shard_size: int
    rectangles: bool = False

    @property
    def values(self) -> dict[str, Any]:
        """The values that the features depend on."""
        return self.model_dump(mode="json", exclude=None if self.rectangles else {"rectangles"})

    @property
    def short(self) -> str:
        """Return the name of the folder of these features: the first 16 hex digits of the key's hash."""
        return hash_key(self.values)[:16]

    @property
    def num_shards(self) -> int:
        return -(-self.count // self.shard_size)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        tokens: tuple[Kind, ...] = ("cls", "mean", "patches") if self.patches else ("cls", "mean")
        return (*tokens, "grid") if self.rectangles else tokens

    def shard_range(self, shard: int) -> range:
        """Return the indices of the images in a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))

    def shard_key(self, shard: int, failed: Collection[int] = ()) -> dict[str, Any]:
        """Return the key of a shard as an artifact. One without the rows `failed` is not used by a later call, which
        tries them again."""
        key = {**self.values, "shard": shard}
        return key | {"without": sorted(failed)} if failed else key


class FeatureCache:
    """Reader of the cached features of N images. Patch tokens stay on disk and are mapped into memory.

    Args:
        folder: folder with all shards of `key`, as `dinomed.features.extract.extract` leaves it.
        failed: row -> reason of the images of the key that have no features; they do not count as rows below.
    """

    def __init__(self, folder: Path, key: FeatureKey, failed: Mapping[int, str] | None = None) -> None:
        self.folder, self.key, self.failed = folder, key, failed or {}
        self._patch_maps: dict[int, np.ndarray] = {}
        sizes = [sum(row not in self.failed for row in key.shard_range(shard)) for shard in range(key.num_shards)]
        self._starts = np.cumsum([0, *sizes])  # number of rows before each shard

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shards(self) -> list[int]:
        """The numbers of the shards that have rows."""
        return np.flatnonzero(np.diff(self._starts)).tolist()

    @cached_property
    def cls(self) -> np.ndarray:
        """Class tokens, float32 (N, blocks * C)."""
        return self._read_all("cls")

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean patch tokens, float32 (N, blocks * C)."""
        return self._read_all("mean")

    @cached_property
    def grids(self) -> np.ndarray | None:
        """Rows and columns of patches, int16 (N, 2), where images have different ones; else None."""
        return self._read_all("grid") if self.key.rectangles else None

    def patches(self, indices: Sequence[int]) -> np.ndarray:
        """Return the patch tokens of n images, float32 (n, blocks * C, rows, columns); their grids must be equal."""
        grids = []
        for index in indices:
            shard = int(np.searchsorted(self._starts, index, side="right")) - 1
            if shard not in self._patch_maps:
                self._patch_maps[shard] = self.shard(shard, "patches")
            tokens = self._patch_maps[shard][index - self._starts[shard]]
            if self.grids is not None:
                rows, columns = self.grids[index]
                tokens = tokens[:, :rows, :columns]
            grids.append(tokens)
        return np.stack(grids).astype(np.float32)

    def shard(self, shard: int, kind: Kind) -> np.ndarray:
        """Map one file of a shard into memory, read-only."""
        return np.load(self.folder / file_name(shard, kind), mmap_mode="r")

    @property
    def bytes(self) -> int:
        """Size on disk; 0 without a folder, which is there only if features of an image were computed."""
        return sum(path.stat().st_size for path in self.folder.iterdir()) if self.folder.exists() else 0

    def _read_all(self, kind: Kind) -> np.ndarray:
        return np.concatenate([self.shard(shard, kind) for shard in self.shards])


def artifact_name(shard: int) -> str:
    """Return the name of a shard as an artifact."""
    return f"{shard:05d}"


def file_name(shard: int, kind: Kind) -> str:
    """Return the name of one file of a shard."""
    return f"{artifact_name(shard)}.{kind}.npy"


def is_valid_shard(artifacts: ArtifactFolder, key: FeatureKey, shard: int) -> bool:
    """Return whether a shard exists with this key and is unchanged. A damaged one is reported as a warning."""
    return artifacts.is_valid(artifact_name(shard), key.shard_key(shard))


def write_shard(
    artifacts: ArtifactFolder,
    key: FeatureKey,
    shard: int,
    arrays: Mapping[Kind, np.ndarray],
    failed: Collection[int] = (),
    read_ns: int | None = None,
) -> None:
    """Write one shard, its record last.

    Args:
        arrays: the features of its rows without those of `failed`.
        read_ns: time before its images were read, for `read_time`, ns; None for now.

    Raises:
        DinomedError: a value is not finite in the type in which it is kept, or the disk is full.
    """
    writers = {}
    for kind in key.kinds:
        array = arrays[kind].astype(DTYPES[kind])
        assert len(array) == len(key.shard_range(shard)) - len(failed)
        if not np.isfinite(array).all():
            raise DinomedError(
                f"the backbone gives {kind} tokens that are not finite in {array.dtype}; "
                "its weights are damaged, or its pretraining has diverged"
            )
        writers[file_name(shard, kind)] = partial(_save_array, array)
    artifacts.write(artifact_name(shard), key.shard_key(shard, failed), writers)
    if read_ns is not None:
        os.utime(artifacts.record_path(artifact_name(shard)), ns=(read_ns, read_ns))


def read_time(artifacts: ArtifactFolder, shard: int) -> int:
    """Return a time before the images of a shard that exists were read, ns: the time of its record."""
    return artifacts.record_path(artifact_name(shard)).stat().st_mtime_ns


def _save_array(array: np.ndarray, path: Path) -> None:
    """Write a .npy file. NumPy does not check that the last bytes were written, so the size is checked here."""
    with open(path, "wb") as file:
        np.save(file, array)
        file.flush()
        if os.fstat(file.fileno()).st_size < array.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def remove_caches(folder: Path, only: str | None = None) -> None:
    """Remove the feature caches of all keys in `folder`, and the folders that are empty then; other files stay.

    Args:
        only: name of the one cache to be removed.
    """
    for cache in folder.iterdir() if only is None else [folder / only]:
        if CACHE_NAME.fullmatch(cache.name) and cache.is_dir() and not cache.is_symlink():
            for path in cache.iterdir():
                if _FILE_NAME.fullmatch(path.name) and not path.is_dir():
                    path.unlink()
            _remove_if_empty(cache)
    _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    if not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()
