"""What copies are found by, for every image of a manifest: hashes of its 8 orientations and a descriptor.

Computed in shards. With a folder to keep them in, an interrupted run goes on, and a second one starts at the end.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dinomed.datasets.manifest import Manifest
from dinomed.images.read import UnreadableImage, read_image
from dinomed.io.files import replacing
from dinomed.io.prefetch import prefetch
from dinomed.log import logger
from dinomed.pretrain.curation.deduplication.hashes import phash_views
from dinomed.progress import bar

BITS = 256
_SHARD = 256
_CHUNK = 16  # images that one thread takes at a time: a batch, where the descriptor is a network
_FORMAT = "dinomed.looks/1"
Describe = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Looks:
    """Of N images, in the order of their manifest. Rows of images that cannot be read are 0."""

    hashes: np.ndarray  # uint64 (N, 8, 4), the first as it is
    vectors: np.ndarray  # float32 (N, D), of length 1; D is 0 without a descriptor
    readable: np.ndarray  # bool (N,)

    def rows(self) -> np.ndarray:
        """The images that could be read, int64."""
        return np.flatnonzero(self.readable)


def look(
    manifest: Manifest,
    describe: Describe | None = None,
    fingerprint: str = "",
    *,
    folder: Path | None = None,
    workers: int | None = None,
    description: str = "looking at images",
) -> Looks:
    """Look at every image once.

    Args:
        describe: pictures, uint8 RGB, to vectors (n, D) of length 1; None for hashes alone.
        fingerprint: of `describe`: shards of another one are not used.
        folder: where shards are kept; None keeps none.
    """
    key = hashlib.sha256(f"{_FORMAT}\0{fingerprint}\0{manifest.fingerprint}".encode()).hexdigest()
    shards = []
    with bar(description, len(manifest)) as progress:
        for start in range(0, len(manifest), _SHARD):
            part = manifest.take(range(start, min(start + _SHARD, len(manifest))))
            path = None if folder is None else folder / key[:16] / f"{start // _SHARD:05d}.safetensors"
            found = None if path is None else _read_shard(path, len(part))
            if found is None:
                found = _look_at(part, describe, workers, progress.advance)
                if path is not None:
                    _write_shard(path, found)
            else:
                progress.advance(len(part))
            shards.append(found)
    if not shards:
        return _look_at(manifest, describe, workers, lambda _: None)
    dimension = max(shard.vectors.shape[1] for shard in shards)  # 0 where nothing could be read
    vectors = [s.vectors if s.vectors.shape[1] else np.zeros((len(s.vectors), dimension), np.float32) for s in shards]
    return Looks(
        np.concatenate([shard.hashes for shard in shards]),
        np.concatenate(vectors),
        np.concatenate([shard.readable for shard in shards]),
    )


def _look_at(
    manifest: Manifest, describe: Describe | None, workers: int | None, advance: Callable[[int], None]
) -> Looks:
    def chunk(start: int) -> tuple[dict[int, np.ndarray], np.ndarray]:
        """The images from `start` that can be read, and their vectors."""
        images = {}
        for index in range(start, min(start + _CHUNK, len(manifest))):
            try:
                images[index] = read_image(manifest.path(index))
            except UnreadableImage as error:
                logger.warning(f"{error}; it is looked for by its content hash alone")
        vectors = describe(list(images.values())) if describe and images else np.zeros((len(images), 0), np.float32)
        return {index: phash_views(image, BITS) for index, image in images.items()}, vectors

    hashes = np.zeros((len(manifest), 8, BITS // 64), np.uint64)
    readable = np.zeros(len(manifest), bool)
    parts: list[tuple[list[int], np.ndarray]] = []
    starts = range(0, len(manifest), _CHUNK)
    for start, (views, vectors) in zip(starts, prefetch(chunk, starts, workers, ahead=2), strict=True):
        for index, view in views.items():
            hashes[index], readable[index] = view, True
        parts.append((list(views), vectors))
        advance(min(_CHUNK, len(manifest) - start))
    table = np.zeros((len(manifest), max((vectors.shape[1] for _, vectors in parts), default=0)), np.float32)
    for rows, vectors in parts:
        if rows:
            table[rows] = vectors
    return Looks(hashes, table, readable)


def _write_shard(path: Path, shard: Looks) -> None:
    with replacing(path) as temporary:
        save_file({"hashes": shard.hashes, "vectors": shard.vectors, "readable": shard.readable}, temporary)


def _read_shard(path: Path, count: int) -> Looks | None:
    """A shard that is there and whole."""
    if not path.is_file():
        return None
    try:
        arrays = load_file(path)
        shard = Looks(arrays["hashes"], arrays["vectors"], arrays["readable"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        logger.warning(f"{path} is damaged ({str(error).splitlines()[0][:80]}); computing it again")
        return None
    return shard if len(shard.readable) == len(shard.vectors) == len(shard.hashes) == count else None
