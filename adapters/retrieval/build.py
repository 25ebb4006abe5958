"""Making an index: every image of a manifest through the frozen backbone once, pooled, whitened, indexed."""

import hashlib
import os
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
    RetrievalIndex,
    content_hash,
    unit_vectors,
    write_index,
)
from dinomed.adapters.retrieval.pool import Pooling, fit_whitening
from dinomed.backbones.frozen import FrozenBackbone
from dinomed.datasets.manifest import Manifest
from dinomed.features.compute import Features
from dinomed.features.extract import extract
from dinomed.io.files import replacing
from dinomed.io.output_folder import locked, prepare_output
from dinomed.log import logger
from dinomed.progress import bar

PARTS = ".unfinished"
_CHUNK = 256  # images whose patch tokens are on disk at a time


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
) -> RetrievalIndex:
    """Index the images of a manifest and write the index to the folder `out`.

    Class tokens and means come from the feature cache, which the heads share; what an interrupted run computed is used.

    Args:
        cache: where features are kept (`dinomed.features.extract.default_cache`).
        kind: `flat` is exact, and fast enough to about a million images; see `benchmarks/search.py`.
        whiten: dimensions that are left; None: vectors as they are pooled.

    Raises:
        UsageError: no images, `out` in use, or a `whiten` that is too large.
        DinomedError: an image cannot be read, features that are not finite, or the disk is full.
    """
    out, pooling = Path(out), pooling or Pooling()
    unfinished = (out / PARTS).is_dir() and not (out / INDEX_FILE).exists()
    prepare_output(out, overwrite=overwrite or unfinished, marker=PARTS if unfinished else INDEX_FILE)
    with locked(out):
        (out / PARTS).mkdir(exist_ok=True)
        pooled = _pool_all(backbone, manifest, pooling, Path(cache), out / PARTS)
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
            root=Path(os.path.relpath(manifest.root.resolve(), out.resolve())).as_posix(),
            manifest=manifest.fingerprint,
            written={
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "python": platform.python_version(),
                **{name: version(name) for name in ("dinomed", "torch", "faiss-cpu", "numpy")},
            },
            content_sha256="",
        )
        index = RetrievalIndex(record, manifest, vectors, whitening, restore(kind, vectors, graph))
        index.record = record.model_copy(update={"content_sha256": content_hash(index, graph)})
        write_index(index, graph, out)
        shutil.rmtree(out / PARTS)
    return index


def _pool_all(backbone: FrozenBackbone, manifest: Manifest, pooling: Pooling, cache: Path, parts: Path) -> np.ndarray:
    """(N, C), as pooled. Patch tokens, where they are needed, are kept for a few images at a time."""
    if not pooling.feature_spec.patches:
        found = extract(backbone, manifest, cache=cache)
        return pooling(Features(torch.from_numpy(found.cls), torch.from_numpy(found.mean))).numpy()
    rows = []
    with bar("pooling", len(manifest)) as progress:
        for start in range(0, len(manifest), _CHUNK):
            chunk = manifest.take(range(start, min(start + _CHUNK, len(manifest))))
            key = f"{backbone.fingerprint}\0{chunk.fingerprint}\0{pooling.model_dump_json()}"
            part = parts / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"
            if not part.exists():
                _write_part(part, _pool_chunk(backbone, chunk, pooling, parts / "features"))
            rows.append(np.load(part))
            progress.advance(len(chunk))
    return np.concatenate(rows)


def _pool_chunk(backbone: FrozenBackbone, chunk: Manifest, pooling: Pooling, scratch: Path) -> np.ndarray:
    found = extract(backbone, chunk, cache=scratch, patches=True, shard_size=_CHUNK, description="patch tokens")
    patches = torch.from_numpy(found.patches(range(len(chunk))))
    pooled = pooling(Features(torch.from_numpy(found.cls), torch.from_numpy(found.mean), patches)).numpy()
    shutil.rmtree(scratch)
    return pooled


def _write_part(path: Path, rows: np.ndarray) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, rows)
