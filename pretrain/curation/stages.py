"""The stages that look at images or search among vectors: what is computed for one piece, on any machine.

Each is a small value with a call from an item to a table; it opens the files that it needs itself, so that it can be
sent to a worker. An item of those that read images is the list of their paths.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from dinomed.errors import DinomedError
from dinomed.features.neighbors import normalised
from dinomed.images.read import UnreadableImage, read_image
from dinomed.io.prefetch import batched, prefetch
from dinomed.pretrain.curation.config import FacesConfig
from dinomed.pretrain.curation.deduplication.hashes import THUMBNAIL, phash_views, thumbnail
from dinomed.pretrain.curation.deduplication.keypoints import ImageKeypoints, count_matches, find_keypoints
from dinomed.pretrain.curation.descriptors.descriptor import Descriptor, load_descriptor
from dinomed.pretrain.curation.descriptors.sources import ComposedSource
from dinomed.pretrain.curation.filters.faces import find_faces
from dinomed.pretrain.curation.filters.quality import Quality, measure_quality
from dinomed.pretrain.curation.runtime.cache import vectors_to_column
from dinomed.pretrain.curation.search.exact import near_pairs
from dinomed.pretrain.curation.search.ivf import load_ivf
from dinomed.pretrain.curation.search.pairs import no_pairs

FACTS = tuple(field.name for field in fields(Quality))
_BATCH = 16
_KEPT_POINTS = 128  # pictures whose points are held at once; 0.6 MB each
_VIEWS = pa.binary(8 * 32)
_BOXES = pa.list_(pa.list_(pa.int64(), 4))
_THUMBNAIL = pa.binary(THUMBNAIL**2)


@dataclass(frozen=True)
class Look:
    """Every image once: what makes it fit or unfit (`quality`), and its hashes.

    Columns: `problem` (why it cannot be read, else null), the fields of `Quality` (0 where it cannot), `views`
    (`phash_views`, 256 bytes), `thumbnail` (32x32 gray, 1024 bytes).
    """

    workers: int | None = None

    def __call__(self, paths: Sequence[str]) -> pa.Table:
        rows = list(prefetch(_look_at, paths, self.workers))
        columns: dict[str, Any] = {"problem": pa.array([row[0] for row in rows], pa.string())}
        for name in FACTS:
            columns[name] = pa.array(np.array([0.0 if row[1] is None else row[1][name] for row in rows], np.float64))
        columns["views"] = pa.array([row[2] for row in rows], _VIEWS)
        columns["thumbnail"] = pa.array([row[3] for row in rows], _THUMBNAIL)
        return pa.table(columns)


def _look_at(path: str) -> tuple[str | None, dict[str, float] | None, bytes, bytes]:
    try:
        image = read_image(path)
    except UnreadableImage as error:
        return error.reason, None, bytes(_VIEWS.byte_width), bytes(_THUMBNAIL.byte_width)
    quality = asdict(measure_quality(image))
    return None, quality, phash_views(image).astype(">u8").tobytes(), thumbnail(image).tobytes()


def views_of(column: pa.ChunkedArray) -> np.ndarray:
    """The column `views` as uint64 (N, 8, 4)."""
    return np.frombuffer(_bytes(column, _VIEWS.byte_width), ">u8").astype(np.uint64).reshape(-1, 8, 4)


def thumbnails_of(column: pa.ChunkedArray) -> np.ndarray:
    """The column `thumbnail` as uint8 (N, 32, 32)."""
    return np.frombuffer(_bytes(column, _THUMBNAIL.byte_width), np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL)


def _bytes(column: pa.ChunkedArray, width: int) -> bytes:
    parts = [chunk.buffers()[1][chunk.offset * width : (chunk.offset + len(chunk)) * width] for chunk in column.chunks]
    return b"".join(part.to_pybytes() for part in parts)


@dataclass(frozen=True)
class FindFaces:
    """Column `boxes`: the faces of each image, lists of left, top, right, bottom in px."""

    config: FacesConfig
    workers: int | None = None

    def __call__(self, paths: Sequence[str]) -> pa.Table:
        found = prefetch(lambda path: find_faces(_read(path), self.config), paths, self.workers)
        return pa.table({"boxes": pa.array([[list(box) for box in boxes] for boxes in found], _BOXES)})


@dataclass(frozen=True)
class Describe:
    """The copy-detection descriptor that `file` holds, of images that can be read; column `vector`."""

    file: str
    fingerprint: str
    device: str = "auto"
    workers: int | None = None

    def __call__(self, paths: Sequence[str]) -> pa.Table:
        descriptor = _descriptor(self.file, self.fingerprint, self.device)
        threads = self.workers if isinstance(descriptor.source, ComposedSource) else 1  # a network has its own

        def describe(batch: list[str]) -> np.ndarray:
            return descriptor([_read(path) for path in batch])

        with threadpool_limits(1):  # the same rounding whatever machine or engine it runs on
            parts = list(prefetch(describe, batched(paths, _BATCH), threads, ahead=2))
        return pa.table({"vector": vectors_to_column(np.concatenate(parts))})


@dataclass(frozen=True)
class Embed:
    """The class token of a frozen backbone, of length 1; column `vector`."""

    backbone: str
    weights: str | None
    fingerprint: str
    device: str = "auto"
    workers: int | None = None

    def __call__(self, paths: Sequence[str]) -> pa.Table:

        from dinomed.features.compute import compute_features

        backbone = load_frozen(self.backbone, self.weights, self.device)
        if backbone.fingerprint != self.fingerprint:
            raise DinomedError(f"backbone {self.backbone} has changed since the curation began; run it again")
        channels = backbone.preprocessing.channels if backbone.preprocessing.channels in (1, 3) else 3

        def load(batch: list[str]) -> Any:
            return backbone.preprocessing.stack([_read(path, channels) for path in batch])

        found = [
            compute_features(backbone, batch, (-1,), patches=False).cls.float().cpu().numpy()
            for batch in prefetch(load, batched(paths, _BATCH), self.workers, ahead=2)
        ]
        vectors = normalised(np.concatenate(found), f"embedding by {self.backbone} of image")
        vectors[~vectors.any(axis=1), 0] = 1  # a token of zeros has no direction: any will do
        return pa.table({"vector": vectors_to_column(vectors)})


@dataclass(frozen=True)
class SearchPart:
    """One part (n, of) of the pairs above a threshold within the vectors of a file (.npy), or from those to `other`.

    Columns as of `SimilarPairs.table`. With `index` the search is approximate.
    """

    vectors: str
    threshold: float
    k: int | None
    memory_gib: float
    other: str | None = None
    index: str | None = None
    workers: int | None = None

    def __call__(self, part: tuple[int, int]) -> pa.Table:
        x = np.load(self.vectors, mmap_mode="r")
        if self.k is None and self.other is None:  # a single image
            return no_pairs().table()
        if self.index is not None:
            assert self.k is not None
            searcher = load_ivf(self.index, x)
            found = searcher.near_pairs(threshold=self.threshold, k=self.k, memory_gib=self.memory_gib, part=part)
        else:
            y = None if self.other is None else np.load(self.other, mmap_mode="r")
            found = near_pairs(
                x, y, threshold=self.threshold, k=self.k, memory_gib=self.memory_gib, part=part, workers=self.workers
            )
        return found.table()


@dataclass(frozen=True)
class CheckPairs:
    """Do both pictures of a pair show the same thing? Item: two lists of paths; column `matches`, points that align."""

    workers: int | None = None

    def __call__(self, pairs: tuple[Sequence[str], Sequence[str]]) -> pa.Table:
        points = lru_cache(_KEPT_POINTS)(_points)

        def count(pair: tuple[str, str]) -> int:
            return count_matches(points(pair[0]), points(pair[1]))

        found = list(prefetch(count, zip(*pairs, strict=True), self.workers))
        return pa.table({"matches": pa.array(found, pa.int64())})


def _points(path: str) -> ImageKeypoints:
    return find_keypoints(_read(path))


@lru_cache(maxsize=2)
def _descriptor(file: str, fingerprint: str, device: str) -> Descriptor:
    """Loaded once in a process; the fingerprint tells files apart that were replaced."""
    found = load_descriptor(file, device=device)
    if found.fingerprint != fingerprint:
        raise DinomedError(f"descriptor {file} has changed since the curation began; run it again")
    return found


@lru_cache(maxsize=2)
def load_frozen(name: str, weights: str | None, device: str) -> Any:
    """The frozen backbone, loaded once in a process."""
    from dinomed.backbones.load import load_backbone
    from dinomed.device import resolve_device

    return load_backbone(name, weights=weights, device=resolve_device(device))


def _read(path: str, channels: int = 3) -> np.ndarray:
    try:
        return read_image(path, channels=channels)
    except UnreadableImage as error:
        raise DinomedError(f"{error}; it could be read before: run the curation again with --overwrite") from None


def file_of(path: Path) -> str:
    """As workers on other machines are to find it."""
    return str(path.resolve())
