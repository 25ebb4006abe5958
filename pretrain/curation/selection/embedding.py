"""What the images of a pool are compared by, to choose among them: vectors of a backbone, computed here or given."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinomed.errors import DinomedError, UsageError
from dinomed.features.neighbors import normalised
from dinomed.features.table import MARK
from dinomed.io.prefetch import prefetch
from dinomed.log import logger
from dinomed.pretrain.curation.descriptors.stage import Vectors
from dinomed.pretrain.curation.runtime.cache import column_to_vectors, stage_key, vectors_to_column
from dinomed.pretrain.curation.runtime.context import VECTORS, CurationContext
from dinomed.pretrain.curation.runtime.images import batches, reread_image

_MAP_SAMPLE = 20_000


@dataclass(frozen=True)
class Embedder:
    """What images are compared by: a frozen backbone, or, with `backbone` None, the copy-detection descriptor.

    `tables`: features of the pool that `dinomed features` has computed with that backbone.
    """

    backbone: str | None = None
    weights: str | None = None
    tables: Sequence[Path] = ()


@dataclass(frozen=True)
class Embed:
    """Work of the stage "embed": paths to a table with the column `vector`, the class token of a frozen backbone,
    normalised to length 1."""

    backbone: str
    weights: str | None
    fingerprint: str
    device: str = "auto"
    workers: int | None = None

    def __call__(self, paths: Sequence[str]) -> pa.Table:
        import torch

        from dinomed.features.compute import compute_features

        backbone = load_frozen(self.backbone, self.weights, self.device)
        if backbone.fingerprint != self.fingerprint:
            raise DinomedError(f"backbone {self.backbone} has changed since the curation began; run it again")
        channels = backbone.preprocessing.channels if backbone.preprocessing.channels in (1, 3) else 3

        def load(batch: list[str]) -> Any:
            return torch.stack([backbone.preprocessing(reread_image(path, channels)) for path in batch])

        tokens = [
            compute_features(backbone, batch, (-1,), patches=False).cls.float().cpu().numpy()
            for batch in prefetch(load, batches(paths), self.workers, ahead=2)
        ]
        vectors = normalised(np.concatenate(tokens), f"embedding by {self.backbone} of image")
        vectors[~vectors.any(axis=1), 0] = 1  # a zero token has no direction; any unit vector will do
        return pa.table({"vector": vectors_to_column(vectors)})


@lru_cache(maxsize=2)
def load_frozen(name: str, weights: str | None, device: str) -> Any:
    """Load a frozen backbone once per process."""
    from dinomed.backbones.load import load_backbone
    from dinomed.device import resolve_device

    return load_backbone(name, weights=weights, device=resolve_device(device))


def embed(
    context: CurationContext, rows: np.ndarray, vectors: Vectors, embedder: Embedder
) -> tuple[np.ndarray, str, dict[str, Any]]:
    """float32 (n, D) for `rows`, mapped; the key over all that they depend on; what they are."""
    manifest = context.pool.manifest
    digests = manifest.column("sha256")
    identity = [digests[row] for row in rows.tolist()]
    if embedder.backbone is None:
        note = "no --backbone: images are compared by the copy-detection descriptor, which knows copies, not contents"
        context.warn(note)
        key = stage_key("embed", vectors.key, identity)
        known_blocks = (vectors.x[vectors.slot[rows[start : start + 4096]]] for start in range(0, len(rows), 4096))
        shape = (len(rows), int(vectors.x.shape[1]))
        return context.compute_matrix("embed", VECTORS, key, known_blocks, shape), key, {"embedding": "descriptor"}
    backbone = load_frozen(embedder.backbone, embedder.weights, context.device)
    record = {"embedding": backbone.name, "fingerprint": backbone.fingerprint}
    known = _read_tables(embedder.tables, backbone.fingerprint, context)
    work = Embed(embedder.backbone, embedder.weights, backbone.fingerprint, context.device, context.workers)
    todo = np.array([row for row in rows.tolist() if row not in known], np.int64)
    computed = {}
    out = None
    if len(todo):
        ordered = np.sort(todo)
        table = context.map_images("embed", backbone.fingerprint, manifest, ordered, work, description="embeddings")
        column = table["vector"]
        blocks = (column_to_vectors(pa.chunked_array([chunk])) for chunk in column.chunks)
        shape = (len(ordered), int(column.type.list_size))
        own = stage_key("computed", backbone.fingerprint, [digests[row] for row in ordered.tolist()])
        out = context.compute_matrix("embed", "computed.npy", own, blocks, shape)
        computed = {row: place for place, row in enumerate(ordered.tolist())}
    dimension = int(out.shape[1]) if out is not None else len(next(iter(known.values())))
    key = stage_key("embed", backbone.fingerprint, identity, [str(path) for path in embedder.tables])

    def parts() -> Any:
        for start in range(0, len(rows), 4096):
            some = rows[start : start + 4096].tolist()
            yield np.stack([known[row] if row in known else out[computed[row]] for row in some])  # type: ignore[index]

    return context.compute_matrix("embed", VECTORS, key, parts(), (len(rows), dimension)), key, record


def _read_tables(tables: Sequence[Path], fingerprint: str, context: CurationContext) -> dict[int, np.ndarray]:
    """Vectors of the pool's images from tables of `dinomed features`; refused if another backbone made them."""
    known: dict[int, np.ndarray] = {}
    if not tables:
        return known
    images = context.pool.paths[: context.pool.pool_size]
    by_path = {path: row for row, path in enumerate(images)}
    for table in tables:
        try:
            with pq.ParquetFile(table) as file:
                metadata = file.schema_arrow.metadata or {}
                if MARK not in metadata:
                    raise UsageError(f"--embeddings {table} is no table of `dinomed features`")
                found = file.read()
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"--embeddings {table} cannot be read ({str(error).splitlines()[0][:80]})") from None
        own = metadata[b"fingerprint"].decode()
        if own != fingerprint:
            raise UsageError(
                f"--embeddings {table} are of another backbone ({own[:12]}) than --backbone ({fingerprint[:12]}); "
                "compute them again, or leave them out"
            )
        if metadata.get(b"tokens") != b"cls":
            raise UsageError(f"--embeddings {table} are not class tokens; compute them with --tokens cls")
        values = normalised(column_to_vectors(found["feature"]), f"{table}: feature of image")
        for path, value in zip(found["image"].to_pylist(), values, strict=True):
            if path in by_path:
                known[by_path[path]] = value
    if not known:
        raise UsageError("--embeddings: none of their images is in the pool (paths are compared)")
    logger.info(f"embeddings of {len(known):,} of {context.pool.pool_size:,} images of the pool were given")
    return known


def two_components(x: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """Two principal components, fitted to a sample; float32 (N, 2), nan where there is no embedding."""
    sample = x[np.linspace(0, len(x) - 1, min(len(x), _MAP_SAMPLE)).astype(np.int64)].astype(np.float64)
    mean = sample.mean(axis=0)
    _, basis = np.linalg.eigh((sample - mean).T @ (sample - mean))
    basis = basis[:, ::-1][:, :2]
    basis = basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])])
    out = np.full((len(slot), 2), np.nan, np.float32)
    known = np.flatnonzero(slot >= 0)
    for start in range(0, len(known), 65536):
        some = known[start : start + 65536]
        out[some, : basis.shape[1]] = (x[slot[some]] - mean) @ basis
    return out
