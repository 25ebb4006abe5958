"""Stage "describe": fits the descriptor, and computes the vectors of the pool and of the excluded images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from dinomed.datasets.manifest import Manifest
from dinomed.errors import DinomedError
from dinomed.io.prefetch import prefetch
from dinomed.pretrain.curation.descriptors.config import MIN_FIT_IMAGES, DescriptorConfig
from dinomed.pretrain.curation.descriptors.descriptor import (
    Descriptor,
    fit_descriptor,
    load_descriptor,
    save_descriptor,
)
from dinomed.pretrain.curation.descriptors.sources import ComposedSource, build_source
from dinomed.pretrain.curation.runtime.cache import column_to_vectors, stage_key, vectors_to_column
from dinomed.pretrain.curation.runtime.context import VECTORS, CurationContext
from dinomed.pretrain.curation.runtime.images import absolute_name, batches, reread_image

STAGE = "describe"
REFERENCE_VECTORS = "excluded-" + VECTORS


@dataclass(frozen=True)
class Vectors:
    """Descriptors of some of the N images of a pool."""

    x: np.ndarray  # float32 (n, D), of length 1, memory-mapped
    slot: np.ndarray  # int64 (N,): row of `x` of each image, -1 for none; equal files share one
    key: str  # over everything that they depend on


@dataclass(frozen=True)
class Describe:
    """Work of the stage: paths to a table with the column `vector`, by the descriptor in `file`."""

    file: str
    fingerprint: str
    device: str = "auto"
    workers: int | None = None

    def __call__(self, paths: Sequence[str]) -> pa.Table:
        descriptor = _load(self.file, self.fingerprint, self.device)
        threads = self.workers if isinstance(descriptor.source, ComposedSource) else 1  # a network uses threads itself

        def describe(batch: list[str]) -> np.ndarray:
            return descriptor([reread_image(path) for path in batch])

        with threadpool_limits(1):  # the same rounding on every machine and with every executor
            parts = list(prefetch(describe, batches(paths), threads, ahead=2))
        return pa.table({"vector": vectors_to_column(np.concatenate(parts))})


@lru_cache(maxsize=2)
def _load(file: str, fingerprint: str, device: str) -> Descriptor:
    """Load a descriptor once per process; the fingerprint detects a file that was replaced."""
    descriptor = load_descriptor(file, device=device)
    if descriptor.fingerprint != fingerprint:
        raise DinomedError(f"descriptor {file} has changed since the curation began; run it again")
    return descriptor


def describe_images(
    context: CurationContext, config: DescriptorConfig, rows: np.ndarray, reference_rows: np.ndarray
) -> tuple[Vectors, np.ndarray | None, dict[str, Any]]:
    """Fit the descriptor and describe images of the pool and excluded images.

    Args:
        rows: images of the pool to describe, int64, ascending.
        reference_rows: excluded images to describe, int64, ascending.

    Returns:
        The vectors of the pool, those of the excluded images (None if there are none), and a record for the summary.

    Raises:
        DinomedError: there is no image of the pool, or there are fewer than `MIN_FIT_IMAGES` images.
    """
    pool = context.pool
    sets = [(pool.manifest, rows, "")]
    if pool.references is not None and len(reference_rows):
        sets.append((pool.references, reference_rows, "excluded-"))
    if not len(rows) or sum(len(set_rows) for _, set_rows, _ in sets) < MIN_FIT_IMAGES:
        raise DinomedError(
            f"{len(rows)} of {len(pool)} images are readable, different and pass the filters; near-duplicate search "
            f"needs at least {MIN_FIT_IMAGES}: add images, or loosen quality.* or faces.* in the config"
        )
    descriptor = _fit(context, config, sets)
    file = absolute_name(context.cache(STAGE).path("descriptor.safetensors"))
    work = Describe(file, descriptor.fingerprint, context.device, context.workers)
    matrices = []
    for manifest, set_rows, prefix in sets:
        table = context.map_images(
            STAGE, descriptor.fingerprint, manifest, set_rows, work, prefix=prefix, description="descriptors"
        )
        key = stage_key("matrix", [descriptor.fingerprint, *manifest_digests(manifest, set_rows)])
        column = table["vector"]
        blocks = (column_to_vectors(pa.chunked_array([chunk])) for chunk in column.chunks)
        shape = (len(table), column.type.list_size)
        matrices.append((context.compute_matrix(STAGE, prefix + VECTORS, key, blocks, shape), key))
    slot = np.full(len(pool), -1, np.int64)
    slot[rows] = np.arange(len(rows))
    x, key = matrices[0]
    record = {"descriptor": config.source.kind, "fingerprint": descriptor.fingerprint, "dimension": int(x.shape[1])}
    return Vectors(x, slot, key), matrices[1][0] if len(matrices) > 1 else None, record


def _fit(
    context: CurationContext, config: DescriptorConfig, sets: list[tuple[Manifest, np.ndarray, str]]
) -> Descriptor:
    """Return the fitted descriptor, from the cache if it is valid."""
    name = "descriptor.safetensors"
    cache = context.cache(STAGE, name)
    identity = [] if config.fit == "none" else [manifest_digests(manifest, rows) for manifest, rows, _ in sets]
    source = build_source(config.source, context.device)
    key = stage_key("fit", config.model_dump(mode="json"), source.fingerprint, identity)
    if not cache.is_valid(name, key):
        with context.timed("fit", min(config.fit_images, len(sets[0][1]))):
            manifests = [manifest.take(rows.tolist()) for manifest, rows, _ in sets]
            fitted = fit_descriptor(config, manifests, device=context.device, workers=context.workers)
            cache.put(name, key, lambda path: save_descriptor(path, fitted))
    return load_descriptor(cache.path(name), device=context.device)


def manifest_digests(manifest: Manifest, rows: np.ndarray) -> list[str]:
    """Return the content hash of the images at `rows`."""
    digests = manifest.column("sha256")
    return [digests[row] for row in rows.tolist()]
