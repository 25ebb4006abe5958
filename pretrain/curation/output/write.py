"""Writes the result of a curation; `output.read` reads it."""

import os
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from dinomed.burned_in_text.mask import TextMask
from dinomed.datasets.manifest import Manifest, build_manifest, write_manifest
from dinomed.datasets.rebase import rebase
from dinomed.images.read import read_header, read_image
from dinomed.io.files import replacing, sha256_file, write_json
from dinomed.notice import RESEARCH_USE
from dinomed.pretrain.curation.config import CurationConfig
from dinomed.pretrain.curation.decisions import REASONS, Decisions
from dinomed.pretrain.curation.deduplication.stage import DuplicateLinks
from dinomed.pretrain.curation.filters.faces import Box, blur_faces, blurred_name
from dinomed.pretrain.curation.output.read import FORMAT, ROWS, summary_path
from dinomed.pretrain.curation.pool import COLUMNS
from dinomed.pretrain.curation.runtime.cache import write_table
from dinomed.pretrain.curation.runtime.context import CurationContext
from dinomed.pretrain.curation.selection.selection import Selection
from dinomed.progress import track

Boxes = dict[int, list[Box]]  # row -> faces


def write_result(
    output: Path, context: CurationContext, config: CurationConfig, decisions: Decisions, links: DuplicateLinks,
    selection: Selection, faces: Boxes, mask: TextMask | None = None,
) -> Manifest:  # fmt: skip
    """Write the rows, the excluded images and the summary; return the manifest, which is written last."""
    pool = context.pool
    output.unlink(missing_ok=True)  # of an earlier run, whose rows and summary are replaced now
    points = selection.points.copy()
    copies = np.flatnonzero(links.duplicate_of >= 0)
    points[copies] = points[links.duplicate_of[copies]]
    values = {
        "duplicate_of": links.duplicate_of, "reference": links.reference, "similarity": links.similarity,
        "how": links.how.tolist(), "cluster": selection.cluster, "retrieved_for": selection.retrieved_for.tolist(),
        "unlike": selection.unlike, "x": points[:, 0], "y": points[:, 1],
    }  # fmt: skip
    table = pa.table([pa.array(values[field.name], field.type) for field in ROWS], schema=ROWS)
    with replacing(context.folder / "rows.arrow") as temporary:
        write_table(temporary, table)
    references_path = context.folder / "references.parquet"
    if pool.references is None:
        references_path.unlink(missing_ok=True)
    else:
        write_manifest(pool.references, references_path)
    folder = output.with_suffix(".faces").resolve()
    kept_faces = {row: boxes for row, boxes in faces.items() if decisions.kept[row]}
    images = pool.manifest
    if kept_faces:
        images = rebase(images, Path(os.path.commonpath([images.root.resolve(), folder])))
    manifest = _manifest(images, decisions, links, selection)
    if kept_faces:
        manifest = _blurred(manifest, folder, kept_faces, mask)
    summary = _summary(context, config, decisions, links, selection, faces)
    write_json(summary_path(output), summary | ({} if mask is None else {"masked_text": mask.record()}))
    return manifest


def _manifest(manifest: Manifest, decisions: Decisions, links: DuplicateLinks, selection: Selection) -> Manifest:
    """Return the manifest of the pool with `COLUMNS`."""
    images = manifest.column("image")
    alive = decisions.kept.tolist()
    columns: dict[str, list[Any]] = {name: manifest.column(name) for name in manifest.columns if name not in COLUMNS}
    columns["keep"] = alive
    columns["reason"] = decisions.reason.tolist()
    columns["duplicate_of"] = [None if row < 0 else images[row] for row in links.duplicate_of.tolist()]
    columns["component"] = [str(row) for row in links.component.tolist()]
    columns["source"] = [
        source if keep else None for source, keep in zip(selection.source.tolist(), alive, strict=True)
    ]
    columns["retrieved_for"] = [
        name if keep else None for name, keep in zip(selection.retrieved_for.tolist(), alive, strict=True)
    ]
    return build_manifest(columns, manifest.root)


def _blurred(manifest: Manifest, folder: Path, faces: Boxes, mask: TextMask | None) -> Manifest:
    """Replace the images that have faces by blurred copies in `folder`, which is below the root of the manifest.

    The column `original` holds the path of the original.
    """
    columns: dict[str, list[Any]] = {name: manifest.column(name) for name in manifest.columns}
    columns["original"] = [None] * len(manifest)
    for row in track(list(faces), "blurring faces"):
        path = folder / blurred_name(columns["sha256"][row])
        with replacing(path) as temporary:
            pixels = blur_faces(read_image(manifest.path(row)), faces[row])
            Image.fromarray(pixels if mask is None else mask(pixels)).save(temporary, format="PNG")
        header = read_header(path)
        columns["original"][row] = columns["image"][row]
        columns["image"][row] = path.relative_to(manifest.root).as_posix()
        facts = {
            "sha256": sha256_file(path), "width": header.width, "height": header.height, "mode": header.mode,
            "format": header.format, "bytes": path.stat().st_size,
        } | {name: getattr(header, name, None) for name in ("channels", "bits")}  # fmt: skip
        for name, value in facts.items():
            if name in columns:
                columns[name][row] = value
    return build_manifest(columns, manifest.root)


def _summary(
    context: CurationContext,
    config: CurationConfig,
    decisions: Decisions,
    links: DuplicateLinks,
    selection: Selection,
    faces: Boxes,
) -> dict[str, Any]:
    pool = context.pool
    counts = {"kept": int(decisions.kept.sum())}
    counts |= {reason: int(np.equal(decisions.reason, reason).sum()) for reason in REASONS}
    return {
        "format": FORMAT,
        "purpose": RESEARCH_USE,
        "images": len(pool),
        "pool": pool.pool_size,
        "trusted": {queries.name: len(queries.rows) for queries in pool.query_sets},
        "excluded": {name: pool.reference_sets.count(name) for name in dict.fromkeys(pool.reference_sets)},
        "counts": {reason: count for reason, count in counts.items() if count or reason == "kept"},
        "sources": [asdict(contribution) for contribution in selection.contributions],
        "copies": links.record,
        "retrieval": selection.record,
        "searches": context.searches,
        "faces": len(faces) if config.faces.action != "off" else None,
        "notes": list(dict.fromkeys(context.notes)),
        "config": config.model_dump(mode="json"),
        "version": version("dinomed"),
    }
