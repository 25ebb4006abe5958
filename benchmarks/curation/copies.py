"""Recall of near-duplicates for each descriptor and each hash, by kind of copy, at 90% precision.

    python benchmarks/curation/copies.py runs/derm.parquet --json
    python benchmarks/curation/copies.py runs/derm.parquet --backbone runs/ssl --fit whitening
    python benchmarks/curation/copies.py runs/derm.parquet --hashes
    python benchmarks/curation/copies.py runs/derm.parquet --audit --queries 20

Descriptors are fitted to some groups. Synthetic copies of `--queries` images are searched among `--references` images
of other groups. A pair is right if the image is the original of the copy; pairs of one group are left out. There is one
threshold for all kinds: the lowest at which nine in ten of the pairs above it are right. Where true copies are rarer
than here, precision is lower: `false` is the number of wrong pairs at that threshold.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tables import format_table

from dinomed.datasets.manifest import Manifest, read_manifest
from dinomed.datasets.scan.scan import scan
from dinomed.images.read import read_image
from dinomed.io.files import to_json
from dinomed.io.prefetch import prefetch
from dinomed.pretrain.curation.audit.audit import AuditConfig, audit
from dinomed.pretrain.curation.deduplication.hashes import fit_pca_hash, hamming_pairs, phash_views, thumbnail
from dinomed.pretrain.curation.descriptors.config import BackboneConfig, ComposedConfig, DescriptorConfig, SSCDConfig
from dinomed.pretrain.curation.descriptors.descriptor import fit_descriptor
from dinomed.pretrain.curation.descriptors.synthetic_copies import KINDS, make_copy
from dinomed.progress import track

PRECISION = 0.9


def choose(manifest: Manifest, fit: int, references: int, seed: int) -> tuple[Manifest, Manifest]:
    """Return images for fitting and images for searching: one of each group, and no group in both."""
    first: dict[str, int] = {}
    for index, unit in enumerate(manifest.units()):
        first.setdefault(unit, index)
    order = np.random.default_rng(seed).permutation(list(first.values())).tolist()
    return manifest.take(order[:fit]), manifest.take(order[fit : fit + references])


def copies_of(manifest: Manifest, index: int, seed: int) -> list[np.ndarray]:
    image = read_image(manifest.path(index))
    return [make_copy(image, kind, np.random.default_rng([seed, index, n])) for n, kind in enumerate(KINDS)]


def judge(similarity: np.ndarray) -> dict[str, Any]:
    """Compute recall from similarities (Q, K, N) of Q queries, K kinds, N references; the original of query q is
    reference q."""
    queries = np.arange(len(similarity))
    right = similarity[queries, :, queries].copy()  # Q, K
    similarity[queries, :, queries] = -np.inf
    best, wrong = np.sort(right.ravel())[::-1], np.sort(similarity.ravel())[::-1]
    right_pairs = np.arange(1, len(best) + 1)
    false = np.searchsorted(-wrong, -best, side="right")
    enough = np.flatnonzero(right_pairs / (right_pairs + false) >= PRECISION)
    if not len(enough):
        return {"threshold": None, "recall": 0.0, "false": 0, **dict.fromkeys(KINDS, 0.0)}
    threshold = float(best[enough[-1]])
    by_kind = (right >= threshold).mean(axis=0)
    report = {"threshold": threshold, "recall": float((right >= threshold).mean()), "false": int(false[enough[-1]])}
    return report | dict(zip(KINDS, by_kind.tolist(), strict=True))


def measure_descriptor(
    config: DescriptorConfig, fit: Manifest, references: Manifest, queries: int, seed: int, device: str
) -> dict[str, Any]:
    began = time.monotonic()
    descriptor = fit_descriptor(config, [fit], device=device)
    fitted = time.monotonic()
    rows = range(0, len(references), 64)
    blocks = prefetch(
        lambda i: [read_image(references.path(n)) for n in range(i, min(i + 64, len(references)))], rows, 2
    )
    vectors = np.concatenate([descriptor(block) for block in track(blocks, "references", len(rows))])
    described = time.monotonic()
    similarities = [descriptor(copies_of(references, i, seed)) @ vectors.T for i in track(range(queries), "copies")]
    speed = len(references) / (described - fitted)
    return judge(np.stack(similarities)) | {"fit_s": fitted - began, "images_per_second": speed}


def measure_hashes(fit: Manifest, references: Manifest, queries: int, seed: int) -> list[dict[str, Any]]:
    """Evaluate each hash at several radii: recall by kind, and wrong pairs among all pairs of references."""
    fitted = fit_pca_hash(np.stack([thumbnail(read_image(fit.path(i))) for i in range(len(fit))]))

    def hashes(image: np.ndarray) -> tuple[np.ndarray, ...]:
        views = phash_views(image, 256)
        return phash_views(image, 64)[0], views[0], fitted(thumbnail(image)[None])[0], views

    originals = [hashes(read_image(references.path(i))) for i in track(range(len(references)), "references")]
    copies = [[hashes(copy) for copy in copies_of(references, i, seed)] for i in track(range(queries), "copies")]
    rows = []
    for which, name, radii in (
        (0, "phash, 64 bits", (2, 4)), (1, "phash, 256 bits", (8, 24, 40)), (2, "PCA hash, 64 bits", (2, 4, 6)),
        (3, "phash, 256 bits, 8 views", (8, 24, 40)),
    ):  # fmt: skip
        known = np.stack([row[which if which < 3 else 1] for row in originals])
        for radius in radii:
            pairs = hamming_pairs(known, radius=radius)
            row: dict[str, Any] = {"hash": name, "radius": radius, "false": len(pairs)}
            if which == 3:
                pairs = hamming_pairs(np.concatenate([row[3] for row in originals]), known, radius=radius)
                row["false"] = len(
                    {(min(i, j), max(i, j)) for i, j in zip(pairs.i // 8, pairs.j, strict=True) if i != j}
                )
            for n, kind in enumerate(KINDS):
                query_hashes = np.stack([query[n][which] for query in copies]).reshape(-1, known.shape[1])
                near = hamming_pairs(query_hashes, known, radius=radius)
                views = len(query_hashes) // queries
                row[kind] = (
                    len({int(i) // views for i, j in zip(near.i, near.j, strict=True) if i // views == j}) / queries
                )
            rows.append(row)
    return rows


def measure_audit(fit: Manifest, references: Manifest, queries: int, seed: int) -> dict[str, Any]:
    """Run `dinomed audit` on the references against copies of some of them and the same number of other images."""
    with tempfile.TemporaryDirectory() as folder:
        for index in range(queries):
            for kind, copy in zip(KINDS, copies_of(references, index, seed), strict=True):
                Image.fromarray(copy).save(Path(folder) / f"{index:05d}_{kind}.png")
            for row in (2 * index, 2 * index + 1):
                shutil.copy(fit.path(row), Path(folder) / f"other_{row:05d}{fit.path(row).suffix}")
        test = scan(folder, make_split=False).manifest
        began = time.monotonic()
        result = audit(references, test, AuditConfig(groups=False))
        seconds = time.monotonic() - began
        names = test.column("image")
        pairs = [(names[pair.test], pair.train) for pair in result.pairs]
    right = {name for name, row in pairs if not name.startswith("other") and int(name[:5]) == row}
    wrong = [(name, references.column("image")[row or 0]) for name, row in pairs if name not in right]
    by_kind = {kind: sum(name[6:-4] == kind for name in right) / queries for kind in KINDS}
    report = {"test_images": len(names), "recall": len(right) / (queries * len(KINDS)), "wrong": len(wrong)}
    return report | by_kind | {"seconds": seconds, "wrong_pairs": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--backbone")
    parser.add_argument("--weights", help="weights of the backbone; without a backbone, an SSCD file")
    parser.add_argument("--fit", default="copies", choices=["copies", "whitening", "none"])
    parser.add_argument("--fit-images", type=int, default=1000)
    parser.add_argument("--references", type=int, default=3000)
    parser.add_argument("--queries", type=int, default=250)
    parser.add_argument("--hashes", action="store_true")
    parser.add_argument("--audit", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    fit, references = choose(read_manifest(args.manifest), args.fit_images, args.references, args.seed)
    queries = min(args.queries, len(references))
    if args.hashes:
        rows = measure_hashes(fit, references, queries, args.seed + 1)
    elif args.audit:
        rows = [measure_audit(fit, references, queries, args.seed + 1)]
    else:
        source: ComposedConfig | BackboneConfig | SSCDConfig = ComposedConfig()
        if args.backbone:
            source = BackboneConfig(backbone=args.backbone, weights=args.weights)
        elif args.weights:
            source = SSCDConfig(weights=args.weights)
        config = DescriptorConfig(source=source, fit=args.fit, fit_images=len(fit), seed=args.seed)
        metrics = measure_descriptor(config, fit, references, queries, args.seed + 1, args.device)
        rows = [{"descriptor": source.kind, "fit": args.fit, "fit_images": len(fit)} | metrics]
    if args.json:
        print(to_json({"references": len(references), "queries": queries, "rows": rows}, indent=2))
        return
    print(format_table(rows))


if __name__ == "__main__":
    main()
