"""Features on disk: shards that are trusted only if their recorded key and checksums match.

A cache is a folder of shards. Shard 7 is `00007.cls.npy` and `00007.mean.npy` (float32), `00007.patches.npy` (float16)
where patch tokens are wanted, and, written last, `00007.json` with the key and the SHA-256 of each file. A process that
is killed leaves whole shards and at most one without its JSON, which is computed again.

Patch tokens are float16: they are a hundred times as many as class tokens, and they end as the input of a layer whose
training is noisier than their rounding (about 1 part in 2,000; they come out of a LayerNorm, so the range is safe).
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dinomed.config import Config
from dinomed.errors import DinomedError
from dinomed.io.files import read_json, replacing, sha256_file, write_json
from dinomed.log import logger

FORMAT = "dinomed.features/1"
Kind = Literal["cls", "mean", "patches"]
LOCK_FILE = ".lock"
_STORE = re.compile(r"[0-9a-f]{16}")
_PART = re.compile(r"\d{5,}\.(?:json|(?:cls|mean|patches)\.npy)|\.lock|\.tmp-.*")
DTYPES = {"cls": np.float32, "mean": np.float32, "patches": np.float16}


class FeatureKey(Config):
    """All that the features depend on. `images` is the manifest's fingerprint, `backbone` the backbone's (weights,
    architecture, preprocessing with its image size)."""

    format: str = FORMAT
    backbone: str
    images: str
    count: int
    blocks: tuple[int, ...]  # counted from 0, in the order in which they are concatenated
    patches: bool
    shard_size: int

    @property
    def short(self) -> str:
        """The name of the cache's folder."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def num_shards(self) -> int:
        return -(-self.count // self.shard_size)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return ("cls", "mean", "patches") if self.patches else ("cls", "mean")

    def shard_range(self, shard: int) -> range:
        """The images of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))


class FeatureCache:
    """Reads the features of `len(cache)` images; patches stay on disk and are mapped into memory."""

    def __init__(self, folder: Path, key: FeatureKey) -> None:
        self.folder, self.key = folder, key
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.key.count

    @cached_property
    def cls(self) -> np.ndarray:
        """Class tokens, float32 (N, blocks * C)."""
        return self._all("cls")

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean patch tokens, float32 (N, blocks * C)."""
        return self._all("mean")

    def patches(self, indices: Sequence[int]) -> np.ndarray:
        """Patch tokens of some images, float32 (n, blocks * C, rows, columns)."""
        found = []
        for index in indices:
            shard, row = divmod(int(index), self.key.shard_size)
            if shard not in self._maps:
                self._maps[shard] = self.shard(shard, "patches")
            found.append(self._maps[shard][row])
        return np.stack(found).astype(np.float32)

    def shard(self, shard: int, kind: Kind) -> np.ndarray:
        """One file of one shard, mapped into memory, read-only."""
        return np.load(shard_file(self.folder, shard, kind), mmap_mode="r")

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def _all(self, kind: Kind) -> np.ndarray:
        return np.concatenate([self.shard(shard, kind) for shard in range(self.key.num_shards)])


def remove_caches(folder: Path) -> None:
    """Remove the features below `folder`, of whichever keys, and what is empty then; anything else stays."""
    for cache in folder.iterdir():
        if _STORE.fullmatch(cache.name) and cache.is_dir() and not cache.is_symlink():
            for path in cache.iterdir():
                if _PART.fullmatch(path.name) and not path.is_dir():
                    path.unlink()
            _remove_if_empty(cache)
    _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    if not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()


def shard_file(folder: Path, shard: int, kind: Kind) -> Path:
    return folder / f"{shard:05d}.{kind}.npy"


def record_file(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.json"


def write_shard(folder: Path, key: FeatureKey, shard: int, arrays: Mapping[Kind, np.ndarray]) -> None:
    """Write one shard, its record last. Raises `DinomedError` if a value is not finite in its type."""
    files: dict[str, Any] = {}
    for kind in key.kinds:
        array = arrays[kind].astype(DTYPES[kind])
        assert len(array) == len(key.shard_range(shard))
        if not np.isfinite(array).all():
            raise DinomedError(
                f"the backbone gives {kind} tokens that are not finite in {array.dtype}; "
                "its weights are damaged, or its pretraining has diverged"
            )
        path = shard_file(folder, shard, kind)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, array)
            file.flush()
            if os.fstat(file.fileno()).st_size < array.nbytes:  # NumPy does not look whether the last bytes were taken
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write_json(record_file(folder, shard), {"key": key.model_dump(mode="json"), "shard": shard, "files": files})


def is_whole(folder: Path, key: FeatureKey, shard: int) -> bool:
    """Whether a shard is there, of this key, and unchanged; says why if it is there and is not."""
    record_path = record_file(folder, shard)
    if not record_path.exists():
        return False
    try:
        record = read_json(record_path)
        files = record["files"]
        if record["key"] != key.model_dump(mode="json") or record["shard"] != shard:
            raise DinomedError("it was made from other images, another backbone or other settings")
        for kind in key.kinds:
            path = shard_file(folder, shard, kind)
            expected = files[path.name]
            if not path.is_file() or path.stat().st_size != expected["bytes"]:
                raise DinomedError(f"{path.name} is missing or cut off")
            if sha256_file(path) != expected["sha256"]:
                raise DinomedError(f"{path.name} has changed")
    except (DinomedError, KeyError, TypeError) as error:
        reason = error if isinstance(error, DinomedError) else "its record is not one"
        logger.warning(f"features {record_path.with_suffix('')} are not used ({reason}); computing them again")
        return False
    return True
