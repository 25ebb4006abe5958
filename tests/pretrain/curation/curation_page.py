"""A curation's outcome made by hand, small, with names and values that a page has to escape and to hide."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from dinomed.datasets.manifest import Manifest, build_manifest
from dinomed.datasets.scan.scan import scan
from dinomed.pretrain.curation.decisions import EXACT_COPY, EXCLUDED_COPY, EXCLUDED_GROUP, NEAR_COPY, NOT_RETRIEVED
from dinomed.pretrain.curation.output.read import CurationResult
from dinomed.pretrain.curation.selection.contribution import SetContribution

NASTY = "<script>alert(1)<_script>.png"  # no file can hold a slash
IMAGES = 40


def make_result(folder: Path, *, removed: bool = True) -> CurationResult:
    """40 pictures of noise. Rows 1 and 2 are copies of 0, row 3 of a reference; 4 is of its group, 5 is black, 6 to 11
    were not asked for; images 20 and later are in three clusters."""
    rng = np.random.default_rng(0)
    pool, out = folder / "pool", folder / "out"
    for place in (pool, out):
        place.mkdir(parents=True)
    names = [NASTY, '"><img src=x onerror=alert(2)>.png', "Mrs_Example.png"]
    names += [f"secret_{number:02d}.png" for number in range(len(names), IMAGES)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(pool / name)
    Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(out / "test_secret.png")
    manifest, references = (scan(place, make_split=False).manifest for place in (pool, out))
    manifest = manifest.take(np.argsort([names.index(image) for image in manifest.column("image")]).tolist())
    reason: list[str | None] = [None] * IMAGES
    rows: dict[str, Any] = {
        "duplicate_of": np.full(IMAGES, -1), "reference": np.full(IMAGES, -1),
        "similarity": np.full(IMAGES, np.nan, np.float32), "how": np.full(IMAGES, None, object),
        "cluster": np.full(IMAGES, -1), "retrieved_for": np.full(IMAGES, None, object),
        "unlike": np.full(IMAGES, np.nan, np.float32), "x": np.full(IMAGES, np.nan, np.float32),
        "y": np.full(IMAGES, np.nan, np.float32),
    }  # fmt: skip
    if removed:
        reason[1:6] = EXACT_COPY, NEAR_COPY, EXCLUDED_COPY, EXCLUDED_GROUP, "black"
        reason[6:12] = [NOT_RETRIEVED] * 6
        rows["duplicate_of"][1:3] = 0
        rows["reference"][3] = 0
        rows["similarity"][1:4] = 1.0, 0.87, 0.49
        rows["how"][1:4] = "exact", "descriptor", "descriptor"
        rows["cluster"][20:] = np.arange(20) % 3
        rows["x"][:30], rows["y"][:30] = rng.standard_normal((2, 30)).astype(np.float32)
    counts = {"kept": reason.count(None)} | {word: reason.count(word) for word in reason if word is not None}
    columns = {name: manifest.column(name) for name in manifest.columns if name != "group"}
    columns |= {
        "label": ["<i>mole</i>" if row % 4 else "melanoma" for row in range(IMAGES)],
        "operator": [f"operator {row % 4}" for row in range(IMAGES)],
        "case": [f"case {row // 2}" for row in range(IMAGES)],
    }
    manifest = add_columns(build_manifest(columns, manifest.root), reason)
    kept = counts["kept"]
    summary = {
        "format": "dinomed.curation/1", "images": IMAGES, "counts": counts,
        "sources": [vars(SetContribution("lesions <b>", "as is", 10, 10, 10)),
                    vars(SetContribution("lesions <b>", "cluster", 10, 25, kept - 10))],
        "searches": [{"search": "copies", "recall": 0.961, "of": 852, "queries": 1000, "probes": 8}] if removed else [],
        "fingerprints": {"descriptor": "0123456789abcdef"}, "config": {"descriptor": {"fit_images": 600}},
    }  # fmt: skip
    timings = [{"stage": "look", "seconds": 3.0, "images": IMAGES}] if removed else []
    return CurationResult(folder / "curated.parquet", manifest, references, summary, rows, timings)


def add_columns(manifest: Manifest, reason: list[str | None]) -> Manifest:
    """What a curation adds, as it adds it."""
    table = manifest.table
    keep = [word is None for word in reason]
    source = [("as is" if row % 2 else "cluster") if kept else None for row, kept in enumerate(keep)]
    for name, values in (("keep", keep), ("reason", reason), ("source", source)):
        table = table.append_column(name, pa.array(values))
    return Manifest(table, manifest.root)
