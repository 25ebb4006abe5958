"""Effect of curation on pretraining: the same small run on the raw pool, on the kept images, and on random subsets.

    python benchmarks/pretrain/curation_learning.py --pool runs/curation/curated.parquet --data runs/derm.parquet \\
        --images 38400 --seeds 0 1 2 -o runs/curation_learning

All runs see the same number of images, so a smaller set is seen more often. `raw` is the whole pool with junk, copies
and planted test images; `random` is another random subset of it for each seed; `trusted` is the query set alone, if it
has enough images for a batch. Runs are evaluated on val of `--data`, whose images and groups must not be in the pool,
by k-NN and logistic regression on frozen features. An interrupted call continues where it stopped.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.adapters.evaluation.probe import probe
from dinomed.backbones.load import load_backbone
from dinomed.config import load_config
from dinomed.configs import find_config
from dinomed.datasets.manifest import Manifest, build_manifest, read_manifest, write_manifest
from dinomed.errors import UsageError
from dinomed.features.extract import default_cache
from dinomed.io.files import write_json
from dinomed.log import logger
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.curation.output.read import CurationResult, load_result
from dinomed.pretrain.run_folder import CONFIG_FILE, LOG_FILE
from dinomed.pretrain.trainer import pretrain

CONFIG = "configs/pretrain/vit_tiny_cpu.yaml"
K = 20
SETS = ("raw", "random", "curated", "trusted")
FIGURES = ("knn_auroc", "knn_balanced_accuracy", "logistic_auroc", "logistic_balanced_accuracy", "rank")


def rows_of(outcome: CurationResult, name: str, seed: int) -> np.ndarray:
    """Return the rows of the pool that a run is trained on."""
    every = np.arange(len(outcome.keep))
    if name == "raw":
        return every[[reason != "unreadable" for reason in outcome.reason]]
    if name == "curated":
        return np.flatnonzero(outcome.keep)
    if name == "random":
        drawn = np.random.default_rng(seed).permutation(rows_of(outcome, "raw", seed))
        return np.sort(drawn[: int(outcome.keep.sum())])
    source = outcome.manifest.column("source")
    return every[[word == "as is" for word in source]]


def refuse_overlap(outcome: CurationResult, data: Manifest) -> None:
    """Check that the pool shares no image or group with the evaluation data.

    Raises:
        UsageError: an image that learning may begin from (whatever the curation said of it) is one of val, or of its
            groups.
    """
    val = data.select(split="val")
    rows = outcome.manifest.take(rows_of(outcome, "raw", 0).tolist())
    for column in ("sha256", "group"):
        if not (val.has(column) and rows.has(column)):
            continue
        both = {value for value in rows.column(column) if value is not None} & set(val.column(column))
        if both:
            raise UsageError(f"{len(both)} values of {column} are in the pool and among the val images of --data")


def write_set(manifest: Manifest, rows: np.ndarray, path: Path) -> Manifest:
    """Write a manifest of the images without splits, labels and decisions, so that a run uses all of them."""
    names = ("image", "sha256", "width", "height", "mode", "format", "bytes", "channels", "bits")
    chosen = manifest.take(rows.tolist())
    kept = build_manifest({name: chosen.column(name) for name in names if chosen.has(name)}, manifest.root)
    write_manifest(kept, path)
    return kept


def run_one(
    outcome: CurationResult, name: str, seed: int, data: Path, out: Path, images: int, settings: list[str], device: str
) -> dict[str, Any]:
    """Do one run and return its metrics; a run that is already in `out` is used."""
    done = out / "learned.json"
    if done.exists():
        return json.loads(done.read_text())
    own = out.with_suffix(".parquet")
    chosen = write_set(outcome.manifest, rows_of(outcome, name, seed), own)
    batch = load_config(PretrainConfig, find_config(CONFIG), settings).run.batch_size
    steps = max(images // batch, 1)
    asked = [*settings, f"run.steps={steps}", f"run.seed={seed}", f"run.checkpoint_every={max(steps // 4, 1)}",
             "run.knn_images=0", "run.pca_images=0"]  # fmt: skip
    resolved = load_config(PretrainConfig, find_config(CONFIG), asked)
    result = pretrain(resolved, own, out, device=device, resume=(out / CONFIG_FILE).exists())
    last = [json.loads(line) for line in (out / LOG_FILE).read_text().splitlines()][-1]
    backbone = load_backbone(out, device=device)
    found = probe(backbone, read_manifest(data), cache=default_cache(data), split="val")
    knn = next(row for row in found["knn"]["tried"] if row["k"] == K)
    figures = {
        "images": len(chosen), "seen": steps * batch, "knn_auroc": knn["auroc"],
        "knn_balanced_accuracy": knn["balanced_accuracy"], "logistic_auroc": found["logistic"]["auroc"],
        "logistic_balanced_accuracy": found["logistic"]["balanced_accuracy"], "rank": last.get("rank"),
        "seconds": result.seconds,
    }  # fmt: skip
    write_json(done, figures)
    return figures


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Format a Markdown table: a row for each set, values as means over seeds, with their range if there are
    several."""
    lines = ["| learned from | images | " + " | ".join(FIGURES) + " |", "|---" * (2 + len(FIGURES)) + "|"]
    for name, runs in rows.items():
        cells = []
        for figure in FIGURES:
            values = [run[figure] for run in runs if run[figure] is not None]
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}" if values else "")
        lines.append(f"| {name} | {runs[0]['images']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, required=True, help="manifest that dinomed curate wrote")
    parser.add_argument("--data", type=Path, required=True, help="manifest with labels and splits for evaluation")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/curation_learning"))
    parser.add_argument("--only", nargs="*", choices=SETS, default=list(SETS[:3]))
    parser.add_argument("--images", type=int, default=19200, help="images that each run sees")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", dest="settings", action="append", default=[], help="as in dinomed pretrain")
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    outcome = load_result(asked.pool)
    try:
        refuse_overlap(outcome, read_manifest(asked.data))
    except UsageError as error:
        parser.error(str(error))
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in asked.seeds:  # seed by seed: an early stop leaves comparable results
        for name in asked.only:
            logger.info(f"{name}, seed {seed}")
            out = asked.output / f"{name}_{asked.images}_{seed}"
            asked.output.mkdir(parents=True, exist_ok=True)
            figures = run_one(outcome, name, seed, asked.data, out, asked.images, asked.settings, asked.device)
            rows.setdefault(name, []).append(figures)
        write_json(asked.output / "learning.json", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
