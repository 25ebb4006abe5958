"""What a curation writes in the end; `outcome` reads it back."""

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from dinomed.datasets.manifest import Manifest, build_manifest, write_manifest
from dinomed.images.read import read_header, read_image
from dinomed.io.files import replacing, sha256_file, write_json
from dinomed.notice import RESEARCH_USE
from dinomed.pretrain.curation.decisions import Verdicts
from dinomed.pretrain.curation.deduplication.stage import Links
from dinomed.pretrain.curation.filters.faces import blur_faces, blurred_name
from dinomed.pretrain.curation.output.read import COLUMNS, FORMAT, ROWS, summary_path
from dinomed.pretrain.curation.reasons import REASONS
from dinomed.pretrain.curation.runtime.cache import write_table
from dinomed.pretrain.curation.runtime.context import Job
from dinomed.pretrain.curation.selection.stage import Chosen
from dinomed.progress import track

Boxes = dict[int, list[tuple[int, int, int, int]]]


def write_result(output: Path, job: Job, verdicts: Verdicts, links: Links, chosen: Chosen, faces: Boxes) -> None:
    """The rows, the excluded images, the summary, and last the manifest."""
    pile = job.pile
    output.unlink(missing_ok=True)  # of an earlier run: its rows and summary go now
    points = chosen.points.copy()
    copies = np.flatnonzero(links.duplicate_of >= 0)
    points[copies] = points[links.duplicate_of[copies]]
    values = {
        "duplicate_of": links.duplicate_of, "reference": links.reference, "similarity": links.similarity,
        "how": links.how.tolist(), "cluster": chosen.cluster, "retrieved_for": chosen.retrieved_for.tolist(),
        "unlike": chosen.unlike, "x": points[:, 0], "y": points[:, 1],
    }  # fmt: skip
    table = pa.table([pa.array(values[field.name], field.type) for field in ROWS], schema=ROWS)
    with replacing(job.folder / "rows.arrow") as temporary:
        write_table(temporary, table)
    kept_out = job.folder / "references.parquet"
    if pile.references is None:
        kept_out.unlink(missing_ok=True)
    else:
        write_manifest(pile.references, kept_out)
    write_json(summary_path(output), _summary(job, verdicts, links, chosen, faces))
    write_manifest(_blurred(output, _manifest(job, verdicts, links, chosen), faces, verdicts), output)


def _manifest(job: Job, verdicts: Verdicts, links: Links, chosen: Chosen) -> Manifest:
    """The pile with `COLUMNS`."""
    manifest = job.pile.manifest
    images = manifest.column("image")
    alive = verdicts.alive.tolist()
    columns: dict[str, list[Any]] = {name: manifest.column(name) for name in manifest.columns if name not in COLUMNS}
    columns["keep"] = alive
    columns["reason"] = verdicts.reason.tolist()
    columns["duplicate_of"] = [None if row < 0 else images[row] for row in links.duplicate_of.tolist()]
    columns["component"] = [str(row) for row in links.component.tolist()]
    columns["source"] = [source if keep else None for source, keep in zip(chosen.source.tolist(), alive, strict=True)]
    columns["retrieved_for"] = [
        name if keep else None for name, keep in zip(chosen.retrieved_for.tolist(), alive, strict=True)
    ]
    return build_manifest(columns, manifest.root)


def _blurred(output: Path, manifest: Manifest, faces: Boxes, verdicts: Verdicts) -> Manifest:
    """With copies in which faces are blurred in place of the images that have any; `original` names these."""
    import os

    chosen = [row for row in faces if verdicts.alive[row]]
    if not chosen:
        return manifest
    folder = output.with_suffix(".faces").resolve()
    root = Path(os.path.commonpath([manifest.root.resolve(), folder]))
    prefix = os.path.relpath(manifest.root.resolve(), root)
    columns: dict[str, list[Any]] = {name: manifest.column(name) for name in manifest.columns}
    columns["original"] = [None] * len(manifest)
    if prefix != ".":
        for name in ("image", "mask", "duplicate_of"):
            if name in columns:
                columns[name] = [
                    None if value is None else f"{Path(prefix).as_posix()}/{value}" for value in columns[name]
                ]
    for row in track(chosen, "blurring faces"):
        path = folder / blurred_name(columns["sha256"][row])
        with replacing(path) as temporary:
            Image.fromarray(blur_faces(read_image(manifest.path(row)), faces[row])).save(temporary, format="PNG")
        header = read_header(path)
        columns["original"][row] = columns["image"][row]
        columns["image"][row] = path.relative_to(root).as_posix()
        facts = {
            "sha256": sha256_file(path), "width": header.width, "height": header.height, "mode": header.mode,
            "format": header.format, "bytes": path.stat().st_size,
        } | {name: getattr(header, name, None) for name in ("channels", "bits")}  # fmt: skip
        for name, value in facts.items():
            if name in columns:
                columns[name][row] = value
    return build_manifest(columns, root)


def _summary(job: Job, verdicts: Verdicts, links: Links, chosen: Chosen, faces: Boxes) -> dict[str, Any]:
    pile = job.pile
    found = {"kept": int(verdicts.alive.sum())}
    found |= {reason: int(np.equal(verdicts.reason, reason).sum()) for reason in REASONS}
    return {
        "format": FORMAT,
        "purpose": RESEARCH_USE,
        "images": len(pile),
        "pool": pile.pool,
        "trusted": {queries.name: len(queries.rows) for queries in pile.trusted},
        "excluded": {name: pile.reference_sets.count(name) for name in dict.fromkeys(pile.reference_sets)},
        "counts": {reason: count for reason, count in found.items() if count or reason == "kept"},
        "sources": [asdict(source) for source in chosen.sources],
        "copies": links.record,
        "retrieval": chosen.record,
        "searches": job.searches,
        "faces": len(faces) if job.config.faces.action != "off" else None,
        "notes": list(dict.fromkeys(job.notes)),
        "config": job.config.model_dump(mode="json"),
        "version": version("dinomed"),
    }
