"""Speed of every stage of curation that reads pixels, and its share of the time.

    python benchmarks/curation/stages.py runs/derm.parquet runs/polyps.parquet --images 200
    python benchmarks/curation/stages.py runs/derm.parquet --backbone runs/ssl --json

One thread, processor seconds, the same random images for each stage. `scan` is the work for a manifest (checksum,
header, and a complete decoding as a check); `read` is the decoding at the start of later stages. `describe` is the
copy-detection descriptor without weights; its fit is not measured, since its time does not grow with the pool. `embed`
is the backbone with its preprocessing. `near_duplicates.py` measures the search.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from dinomed.backbones.load import load_backbone
from dinomed.datasets.manifest import Manifest, read_manifest
from dinomed.datasets.scan.facts import read_facts
from dinomed.features.compute import compute_features
from dinomed.images.read import read_image
from dinomed.io.files import to_json
from dinomed.log import set_level
from dinomed.pretrain.curation.deduplication.hashes import phash_views
from dinomed.pretrain.curation.descriptors.config import DescriptorConfig
from dinomed.pretrain.curation.descriptors.descriptor import fit_descriptor
from dinomed.pretrain.curation.filters.quality import measure_quality

BATCH = 16
FITTED = 64


def draw(manifest: Manifest, count: int, seed: int) -> Manifest:
    rows = np.random.default_rng(seed).permutation(len(manifest))[:count]
    return manifest.take(sorted(rows.tolist()))


def timed(work: Callable[[Any], Any], items: list[Any]) -> float:
    """Measure processor seconds over all threads for all items; the first item is also processed once before."""
    work(items[0])
    began = time.process_time()
    for item in items:
        work(item)
    return time.process_time() - began


def measure(manifest: Manifest, backbone: str | None, weights: str | None) -> list[dict[str, Any]]:
    """Return a row for each stage: images a second, and its share of the total time."""
    rows = list(range(len(manifest)))
    pictures = [read_image(manifest.path(row)) for row in rows]
    batches = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
    fitted = DescriptorConfig(fit_images=min(FITTED, len(manifest)))
    describe = fit_descriptor(fitted, [manifest], workers=1)
    names = manifest.column("image")
    seconds = {
        "scan": timed(lambda row: read_facts(manifest.root, names[row]), rows),
        "read": timed(lambda row: read_image(manifest.path(row)), rows),
        "quality": timed(measure_quality, pictures),
        "hashes": timed(lambda picture: phash_views(picture, 256), pictures),
        "describe": timed(describe, batches),
    }
    if backbone is not None:
        frozen = load_backbone(backbone, weights=weights, device="cpu")

        def embed(batch: list[np.ndarray]) -> None:
            compute_features(frozen, frozen.preprocessing.stack(batch), (-1,), False)

        seconds["embed"] = timed(embed, batches)
    whole = sum(seconds.values())
    stages = [(name, len(pictures) / each, each / whole) for name, each in seconds.items()]
    stages.append(("all", len(pictures) / whole, 1.0))
    return [{"stage": name, "images_per_second": speed, "share": share} for name, speed, share in stages]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=200, help="images of each manifest")
    parser.add_argument(
        "--backbone", help="run folder or name of released weights; without it the stage embed is left out"
    )
    parser.add_argument("--weights", help="file of the released weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    set_level("warning")
    report = []
    for path in arguments.manifests:
        manifest = draw(read_manifest(path), arguments.images, arguments.seed)
        sides = [(manifest.column("width")[row], manifest.column("height")[row]) for row in range(len(manifest))]
        megapixels = float(np.mean([width * height for width, height in sides])) / 1e6
        stages = measure(manifest, arguments.backbone, arguments.weights)
        report.append({"manifest": path.name, "images": len(manifest), "megapixels": megapixels, "stages": stages})
    if arguments.json:
        print(to_json(report, indent=2))
        return
    for section in report:
        print(f"\n{section['manifest']}: {section['images']} images of {section['megapixels']:.2f} megapixels\n")
        print("| stage | images/s | share |\n|---|---|---|")
        for row in section["stages"]:
            print(f"| {row['stage']} | {row['images_per_second']:.0f} | {row['share']:.0%} |")


if __name__ == "__main__":
    main()
