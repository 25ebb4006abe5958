"""Construction of an index: features of all images of a manifest, pooled, whitened and indexed."""

import os
import platform
import shutil
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from dinomed.adapters.reference import refer_to
from dinomed.adapters.retrieval.engine import Kind, build_graph, restore
from dinomed.adapters.retrieval.index import (
    INDEX_FILE,
    RECORD_FILE,
    IndexRecord,
    VectorIndex,
    content_hash,
    unit_vectors,
    write_index,
)
from dinomed.adapters.retrieval.pool import Pooling, fit_whitening
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest, relative_root
from dinomed.features.cache import FeatureCache
from dinomed.features.compute import Features
from dinomed.features.extract import check_usable, extract, without_rows
from dinomed.features.familiarity.fit import choose_reference_rows, fit_reference
from dinomed.features.loading import is_unchanged
from dinomed.io.artifacts import hash_key
from dinomed.io.files import replacing
from dinomed.io.output_folder import open_output_folder
from dinomed.io.publish import publish
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
    is resumed. Images that cannot be read or for which the backbone gives no finite features are left out; `unreadable`
    of the manifest of the result lists them.

    Args:
        cache: folder of the feature cache (`dinomed.features.extract.default_cache`).
        kind: `flat` is exact, and fast enough for about a million images; see `benchmarks/features/search.py`.
        whiten: number of dimensions after PCA whitening; None for no whitening.

    Raises:
        UsageError: no image can be used, `out` is in use, or `whiten` is too large.
        DinomedError: the backbone gives no finite features at all, or the disk is full.
    """
    out, pooling = Path(out), pooling or Pooling()
    with open_output_folder(out, marker=INDEX_FILE, overwrite=overwrite, keep=[_POOLED]) as stage:
        pooled, means, manifest = _pool_usable(backbone, manifest, pooling, Path(cache), stage)
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
        rows, units = choose_reference_rows(len(manifest)), manifest.units()
        reference = fit_reference(means[rows], [units[row] for row in rows], backbone, manifest.take(rows))
        index = VectorIndex(record, manifest, vectors, whitening, restore(kind, vectors, graph), reference)
        index.record = record.model_copy(update={"content_sha256": content_hash(index, graph)})
        write_index(index, graph, stage)
        publish(stage, out, [INDEX_FILE, RECORD_FILE], remove=[RECORD_FILE])
    return index


def _pool_usable(
    backbone: FrozenBackbone, manifest: Manifest, pooling: Pooling, cache: Path, stage: Path
) -> tuple[np.ndarray, np.ndarray, Manifest]:
    """Compute the features of the images that can be used.

    Patch tokens, if `pooling` needs them, are stored for a few images at a time.

    Returns:
        Pooled features (N, D), mean patch tokens (N, C), and the manifest of the images.
    """
    if not pooling.feature_spec.patches:
        features = extract(backbone, manifest, cache=cache, skip_unusable=True)
        usable = without_rows(manifest, features.failed)
        check_usable(usable)
        return _pool(features, pooling), features.mean, usable
    failed: dict[int, str] = {}  # row -> reason
    chunks: list[np.ndarray] = []  # 2, n, C
    with bar("pooling", len(manifest)) as progress:
        for start in range(0, len(manifest), _CHUNK):
            chunk = manifest.take(range(start, min(start + _CHUNK, len(manifest))))
            key = hash_key(backbone.fingerprint, chunk.fingerprint, pooling.model_dump_json())
            path = stage / _POOLED / f"{key}.npy"
            if path.exists() and is_unchanged(chunk, path.stat().st_mtime_ns):
                chunks.append(np.load(path))
            else:
                started = time.time_ns()
                features = extract(
                    backbone, chunk, cache=stage / "features", patches=True, shard_size=_CHUNK,
                    description="patch tokens", skip_unusable=True,
                )  # fmt: skip
                if len(features):
                    chunks.append(np.stack([_pool(features, pooling), features.mean]))
                if not features.failed:
                    with replacing(path) as temporary, open(temporary, "wb") as file:
                        np.save(file, chunks[-1])
                    os.utime(path, ns=(started, started))  # for `is_unchanged`
                failed |= {start + row: reason for row, reason in features.failed.items()}
                shutil.rmtree(stage / "features", ignore_errors=True)  # there is none if no image could be used
            progress.advance(len(chunk))
    usable = without_rows(manifest, failed)
    check_usable(usable)
    pooled, means = np.concatenate(chunks, axis=1)
    return pooled, means, usable


def _pool(features: FeatureCache, pooling: Pooling) -> np.ndarray:
    """Return the pooled features (N, D) of images."""
    cls, mean = torch.from_numpy(features.cls), torch.from_numpy(features.mean)
    if not pooling.feature_spec.patches:
        return pooling(Features(cls, mean)).numpy()
    rows = ([row] for row in range(len(features)))  # one by one: grids of patches may differ
    parts = [pooling(Features(cls[row], mean[row], torch.from_numpy(features.patches(row)))) for row in rows]
    return torch.cat(parts).numpy()
