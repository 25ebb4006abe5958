"""Construction of an index: features of all images of a manifest, pooled, whitened and indexed."""

import platform
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from dinomed.adapters.reference import refer_to
from dinomed.adapters.retrieval.engine import Kind, build_graph, restore
from dinomed.adapters.retrieval.index import (
    INDEX_FILE,
    IndexRecord,
    VectorIndex,
    content_hash,
    unit_vectors,
    write_index,
)
from dinomed.adapters.retrieval.pool import Pooling, fit_whitening
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest, relative_root
from dinomed.features.compute import Features
from dinomed.features.extract import extract, without_images
from dinomed.features.finite import NotFiniteImagesError
from dinomed.io.artifacts import hash_key
from dinomed.io.files import replacing
from dinomed.io.output_folder import open_output_folder
from dinomed.log import logger
from dinomed.progress import bar

_POOLED = "pooled"  # folder of pooled features in the stage; it stays when the construction is interrupted
_CHUNK = 256  # images whose patch tokens are on disk at the same time


def build_index(
    backbone: FrozenBackbone,
    manifest: Manifest,
    out: str | Path,
    *,
    cache: str | Path,
    kind: Kind = "flat",
    pooling: Pooling | None = None,
    whiten: int | None = None,
    overwrite: bool = False,
) -> VectorIndex:
    """Index the images of a manifest and write the index to the folder `out`.

    Class tokens and mean patch tokens come from the feature cache, which the heads use too. An interrupted construction
    is resumed. Images for which the backbone gives no finite features are left out; `unreadable` of the manifest of the
    result names them.

    Args:
        cache: folder of the feature cache (`dinomed.features.extract.default_cache`).
        kind: `flat` is exact, and fast enough for about a million images; see `benchmarks/features/search.py`.
        whiten: number of dimensions after PCA whitening; None for no whitening.

    Raises:
        UsageError: no images, `out` is in use, or `whiten` is too large.
        DinomedError: an image cannot be read, no image has finite features, or the disk is full.
    """
    out, pooling = Path(out), pooling or Pooling()
    with open_output_folder(out, marker=INDEX_FILE, overwrite=overwrite, keep=[_POOLED]) as stage:
        pooled, manifest = _pool_finite(backbone, manifest, pooling, Path(cache), stage)
        plain = unit_vectors(pooled, None)
        whitening = None if whiten is None else fit_whitening(plain, whiten)
        vectors = unit_vectors(pooled, whitening)
        if kind != "flat":
            logger.info(f"building the {kind} index of {len(vectors)} vectors")
        graph = build_graph(kind, vectors)
        record = IndexRecord(
            kind=kind,
            count=len(vectors),
            dimension=vectors.shape[1],
            pooling=pooling,
            whitened=whitening is not None,
            backbone=refer_to(backbone, out),
            preprocessing=backbone.preprocessing,
            root=relative_root(manifest.root, out),
            manifest=manifest.fingerprint,
            written={
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "python": platform.python_version(),
                **{name: version(name) for name in ("dinomed", "torch", "faiss-cpu", "numpy")},
            },
            content_sha256="",
        )
        index = VectorIndex(record, manifest, vectors, whitening, restore(kind, vectors, graph))
        index.record = record.model_copy(update={"content_sha256": content_hash(index, graph)})
        write_index(index, graph, out)
        shutil.rmtree(stage)
    return index


def _pool_finite(
    backbone: FrozenBackbone, manifest: Manifest, pooling: Pooling, cache: Path, stage: Path
) -> tuple[np.ndarray, Manifest]:
    """Return pooled features, and the manifest without the images for which the backbone gives no finite features."""
    while True:
        try:
            return _pool_all(backbone, manifest, pooling, cache, stage), manifest
        except NotFiniteImagesError as error:
            manifest = without_images(manifest, error.failed)
            if not len(manifest):
                raise


def _pool_all(backbone: FrozenBackbone, manifest: Manifest, pooling: Pooling, cache: Path, stage: Path) -> np.ndarray:
    """Return pooled features (N, C). Patch tokens, if `pooling` needs them, are stored for a few images at a time."""
    if not pooling.feature_spec.patches:
        features = extract(backbone, manifest, cache=cache)
        return pooling(Features(torch.from_numpy(features.cls), torch.from_numpy(features.mean))).numpy()
    chunks = []
    with bar("pooling", len(manifest)) as progress:
        for start in range(0, len(manifest), _CHUNK):
            chunk = manifest.take(range(start, min(start + _CHUNK, len(manifest))))
            key = hash_key(backbone.fingerprint, chunk.fingerprint, pooling.model_dump_json())
            path = stage / _POOLED / f"{key}.npy"
            if not path.exists():
                pooled = _pool_chunk(backbone, chunk, pooling, stage / "features")
                with replacing(path) as temporary, open(temporary, "wb") as file:
                    np.save(file, pooled)
            chunks.append(np.load(path))
            progress.advance(len(chunk))
    return np.concatenate(chunks)


def _pool_chunk(backbone: FrozenBackbone, chunk: Manifest, pooling: Pooling, scratch: Path) -> np.ndarray:
    features = extract(backbone, chunk, cache=scratch, patches=True, shard_size=_CHUNK, description="patch tokens")
    patches = torch.from_numpy(features.patches(range(len(chunk))))
    pooled = pooling(Features(torch.from_numpy(features.cls), torch.from_numpy(features.mean), patches)).numpy()
    shutil.rmtree(scratch)
    return pooled
