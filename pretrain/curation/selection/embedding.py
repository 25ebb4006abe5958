"""Embeddings: the vectors by which images are selected, from a frozen backbone or from tables of `dinomed features`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinomed.backbones.preprocessing import Preprocessing
from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError, UsageError, first_line
from dinomed.explore.pca import principal_components
from dinomed.features.neighbors import normalised
from dinomed.features.table import MARK
from dinomed.io.files import sha256_file
from dinomed.io.prefetch import prefetch
from dinomed.log import logger
from dinomed.pretrain.curation.descriptors.stage import Vectors, manifest_digests
from dinomed.pretrain.curation.runtime.cache import column_to_vectors, stage_key, vectors_to_column
from dinomed.pretrain.curation.runtime.context import VECTORS, CurationContext
from dinomed.pretrain.curation.runtime.images import batches, reread_image
from dinomed.pretrain.data.select_images import fits_channels

STAGE = "embed"
_ROWS_PER_BLOCK = 4096  # of a matrix that is written
_MAP_SAMPLE = 20_000


@dataclass(frozen=True)
class Embedder:
    """Source of the embeddings: a frozen backbone; or the copy-detection descriptor, if `backbone` is None.

    Attributes:
        tables: features of the pool that `dinomed features` computed with this backbone.
        mean: mean of each channel, for weights that name none.
        std: standard deviation of each channel.
    """

    backbone: str | None = None
    weights: str | None = None
    tables: Sequence[Path] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors of the candidates and of the query images.

    Attributes:
        x: float32 (n, D), memory-mapped; the candidates come first.
        candidates: int64 (c,), the rows of the pool that can be selected.
        slot: int64 (N,), row of `x` of each image of the pool; -1 for none.
        key: cache key over everything that `x` depends on.
    """

    x: np.ndarray
    candidates: np.ndarray
    slot: np.ndarray
    key: str

    @property
    def candidate_vectors(self) -> np.ndarray:
        return self.x[: len(self.candidates)]


@dataclass(frozen=True)
class Embed:
    """Work of the stage: paths to a table with the column `vector`, the class token of a frozen backbone, normalised
    to length 1."""

    backbone: str
    weights: str | None
    fingerprint: str
    device: str = "auto"
    workers: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __call__(self, paths: Sequence[str]) -> pa.Table:
        from dinomed.features.compute import compute_features

        backbone = load_frozen(self.backbone, self.weights, self.device, self.mean, self.std)
        if backbone.fingerprint != self.fingerprint:
            raise DinomedError(f"backbone {self.backbone} has changed since the curation began; run it again")
        preprocessing = backbone.preprocessing

        def load(batch: list[str]) -> Any:
            return preprocessing.stack([reread_image(path, preprocessing.read) for path in batch])

        tokens = [
            compute_features(backbone, batch, (-1,), patches=False).cls.float().cpu().numpy()
            for batch in prefetch(load, batches(paths), self.workers, ahead=2)
        ]
        vectors = normalised(np.concatenate(tokens), f"embedding by {self.backbone} of image")
        vectors[~vectors.any(axis=1), 0] = 1  # a zero token has no direction; any unit vector will do
        return pa.table({"vector": vectors_to_column(vectors)})


@lru_cache(maxsize=2)
def load_frozen(
    name: str,
    weights: str | None,
    device: str,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Any:
    """Load a frozen backbone once per process."""
    from dinomed.backbones.load import load_backbone
    from dinomed.device import resolve_device

    return load_backbone(name, weights=weights, device=resolve_device(device), mean=mean, std=std)


def check_embedder(embedder: Embedder, device: str, images: Manifest) -> None:
    """Check the device, the backbone and the headers of the tables, before the images are read.

    Raises:
        UsageError: there is no such device or backbone, a table does not match the backbone, or no image has the
            channels that the backbone takes.
        DinomedError: the backbone is damaged.
    """
    from dinomed.device import resolve_device

    resolve_device(device)
    if embedder.backbone is None:
        if embedder.tables:
            raise UsageError("`embeddings`: name the backbone that made them with `backbone`")
        return
    backbone = load_frozen(embedder.backbone, embedder.weights, device, embedder.mean, embedder.std)
    for path in embedder.tables:
        _read_table(path, backbone.fingerprint, header_only=True)
    find_misfits(embedder, device, images)


def find_preprocessing(embedder: Embedder, device: str) -> Preprocessing | None:
    """Return how the backbone reads images; None without one."""
    if embedder.backbone is None:
        return None
    backbone = load_frozen(embedder.backbone, embedder.weights, device, embedder.mean, embedder.std)
    preprocessing: Preprocessing = backbone.preprocessing
    return preprocessing


def find_misfits(embedder: Embedder, device: str, images: Manifest) -> np.ndarray:
    """Return which of N images have other channels than the backbone takes, bool (N,).

    Raises:
        UsageError: all have.
    """
    preprocessing = find_preprocessing(embedder, device)
    if preprocessing is None or not images.has("channels"):
        return np.zeros(len(images), bool)
    channels = preprocessing.channels
    facts = zip(images.column("mode"), images.column("channels"), strict=True)
    is_misfit = np.array([not fits_channels(mode, count, channels) for mode, count in facts], bool)
    if is_misfit.all():
        raise UsageError(
            f"no image fits `backbone`, which takes {channels} channels; {images.column('image')[0]} has "
            f"{images.column('channels')[0]}: give a backbone that was pretrained on such images, or leave it out"
        )
    return is_misfit


def embed_images(
    context: CurationContext, rows: np.ndarray, num_candidates: int, vectors: Vectors, embedder: Embedder
) -> tuple[Embeddings, dict[str, Any]]:
    """Return the embeddings of the images at `rows`, and a record for the summary.

    Args:
        rows: int64 (n,); the candidates come first, then the query images.
        vectors: descriptors of the pool, for an `embedder` without a backbone.

    Raises:
        UsageError: a table of `embedder` does not match its backbone or the pool.
        DinomedError: an image cannot be read any more, or a feature is not finite.
    """
    slot = np.full(len(context.pool), -1, np.int64)
    slot[rows] = np.arange(len(rows))
    if embedder.backbone is None:
        x, key = _embed_by_descriptor(context, rows, vectors)
        record = {"embedding": "descriptor"}
    else:
        backbone = load_frozen(embedder.backbone, embedder.weights, context.device, embedder.mean, embedder.std)
        x, key = _embed_by_backbone(context, rows, embedder, backbone.fingerprint)
        record = {"embedding": backbone.name, "fingerprint": backbone.fingerprint}
    return Embeddings(x, rows[:num_candidates], slot, key), record


def _row_blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + _ROWS_PER_BLOCK] for start in range(0, len(rows), _ROWS_PER_BLOCK))


def _embed_by_descriptor(context: CurationContext, rows: np.ndarray, vectors: Vectors) -> tuple[np.ndarray, str]:
    context.warn(
        "there is no `backbone`: images are compared by the copy-detection descriptor, which finds copies and does "
        "not compare contents"
    )
    key = stage_key(STAGE, vectors.key, manifest_digests(context.pool.manifest, rows))
    blocks = (vectors.x[vectors.slot[block]] for block in _row_blocks(rows))
    return context.compute_matrix(STAGE, VECTORS, key, blocks, (len(rows), int(vectors.x.shape[1]))), key


def _embed_by_backbone(
    context: CurationContext, rows: np.ndarray, embedder: Embedder, fingerprint: str
) -> tuple[np.ndarray, str]:
    """Join the vectors of the tables with those of the other images, which the executor computes."""
    assert embedder.backbone is not None
    manifest = context.pool.manifest
    known = _read_tables(embedder.tables, fingerprint, context)
    missing = np.sort(np.array([row for row in rows.tolist() if row not in known], np.int64))
    computed = np.empty((0, 0), np.float32)
    if len(missing):
        work = Embed(
            embedder.backbone, embedder.weights, fingerprint, context.device, context.workers, embedder.mean,
            embedder.std,
        )  # fmt: skip
        table = context.map_images(STAGE, fingerprint, manifest, missing, work, description="embeddings")
        column = table["vector"]
        blocks = (column_to_vectors(pa.chunked_array([chunk])) for chunk in column.chunks)
        computed_key = stage_key("computed", fingerprint, manifest_digests(manifest, missing))
        shape = (len(missing), int(column.type.list_size))
        computed = context.compute_matrix(STAGE, "computed.npy", computed_key, blocks, shape)
    place = {row: number for number, row in enumerate(missing.tolist())}
    dimension = computed.shape[1] or len(next(iter(known.values())))
    digests = manifest_digests(manifest, rows)
    key = stage_key(STAGE, fingerprint, digests, [sha256_file(path) for path in embedder.tables])
    joined = (
        np.stack([known[row] if row in known else computed[place[row]] for row in block.tolist()])
        for block in _row_blocks(rows)
    )
    return context.compute_matrix(STAGE, VECTORS, key, joined, (len(rows), dimension)), key


def _read_tables(tables: Sequence[Path], fingerprint: str, context: CurationContext) -> dict[int, np.ndarray]:
    """Read the vectors of images of the pool from tables of `dinomed features`; row of the pool -> vector.

    An image is found by its content, so that an image that has changed does not get the vector of another one.

    Raises:
        UsageError: a file is no such table, another backbone made it, or it has no image of the pool.
    """
    vectors: dict[int, np.ndarray] = {}
    if not tables:
        return vectors
    rows_of_content: dict[str, list[int]] = {}
    for row, content in enumerate(context.pool.manifest.column("sha256")):
        rows_of_content.setdefault(content, []).append(row)
    for path in tables:
        contents, features = _read_table(path, fingerprint)
        for content, vector in zip(contents, features, strict=True):
            vectors |= dict.fromkeys(rows_of_content.get(content, ()), vector)
    if not vectors:
        raise UsageError("`embeddings`: no image of the pool has the content of an image of the tables; leave them out")
    logger.info(f"the tables hold embeddings of {len(vectors):,} of {len(context.pool):,} images")
    return vectors


def _read_table(path: Path, fingerprint: str, *, header_only: bool = False) -> tuple[list[str], np.ndarray]:
    """Return the SHA-256 of the images of a table of `dinomed features`, and their class tokens, of length 1.

    With `header_only` both are empty, and only the header is checked.
    """
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
            if MARK not in metadata:
                raise UsageError(f"`embeddings={path}` is no table of `dinomed features`")
            if "sha256" not in file.schema_arrow.names:
                raise UsageError(f"`embeddings={path}` has no column 'sha256'; compute it again")
            table = file.schema_arrow.empty_table() if header_only else file.read()
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"`embeddings={path}` cannot be read ({first_line(error)[:80]})") from None
    table_fingerprint = metadata[b"fingerprint"].decode()
    if table_fingerprint != fingerprint:
        raise UsageError(
            f"`embeddings={path}` is of another backbone ({table_fingerprint[:12]}) than `backbone` "
            f"({fingerprint[:12]}); compute it again, or leave it out"
        )
    if metadata.get(b"tokens") != b"cls":
        raise UsageError(f"`embeddings={path}` does not hold class tokens; compute it again with `tokens=cls`")
    if header_only:
        return [], np.empty((0, 0), np.float32)
    features = normalised(column_to_vectors(table["feature"]), f"{path}: feature of image")
    return table["sha256"].to_pylist(), features


def two_components(x: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """Compute two principal components of the embeddings, fitted to a sample.

    Returns:
        float32 (N, 2); nan for images without an embedding.
    """
    sample = x[np.linspace(0, len(x) - 1, min(len(x), _MAP_SAMPLE)).astype(np.int64)]
    mean, basis = principal_components(sample, 2)
    out = np.full((len(slot), 2), np.nan, np.float32)
    embedded = np.flatnonzero(slot >= 0)
    for start in range(0, len(embedded), 65536):
        rows = embedded[start : start + 65536]
        out[rows, : basis.shape[1]] = (x[slot[rows]] - mean) @ basis
    return out
