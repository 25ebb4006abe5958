"""Effect of curation on pretraining: the same small run on the raw pool, on the kept images, and on random subsets.

    python benchmarks/pretrain/curation_learning.py --pool runs/curation/curated.parquet --data runs/derm.parquet \\
        --images 38400 --seeds 0 1 2 -o runs/curation_learning

All runs see the same number of images, so a smaller set is seen more often. `raw` is the whole pool with junk, copies
and planted test images; `random` is another random subset of it for each seed; `trusted` is the query set alone, if it
has enough images for a batch. Runs are evaluated on val of `--data`, whose images and groups must not be in the pool,
by k-NN and logistic regression on frozen features. An interrupted call continues where it stopped.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from runs import count_steps, format_cells, read_finished, train_and_evaluate, write_finished

from dinomed.configs import find_config
from dinomed.datasets.manifest import Manifest, build_manifest, read_manifest, write_manifest
from dinomed.errors import UsageError
from dinomed.io.files import write_json
from dinomed.log import logger
from dinomed.pretrain.curation.output.read import CurationResult, load_result

CONFIG = "configs/pretrain/vit_tiny_cpu.yaml"
SETS = ("raw", "random", "curated", "trusted")
COLUMNS = ("knn_auroc", "knn_balanced_accuracy", "logistic_auroc", "logistic_balanced_accuracy", "rank")


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
    path = out / "learned.json"
    if (finished := read_finished(path)) is not None:
        return finished
    set_path = out.with_suffix(".parquet")
    chosen = write_set(outcome.manifest, rows_of(outcome, name, seed), set_path)
    config = find_config(CONFIG)
    steps, batch = count_steps(config, settings, images)
    run_settings = [*settings, f"run.steps={steps}", f"run.seed={seed}", f"run.checkpoint_every={max(steps // 4, 1)}",
                    "run.knn_images=0", "run.pca_images=0"]  # fmt: skip
    metrics = train_and_evaluate(config, run_settings, set_path, data, out, device)
    return write_finished(path, {"images": len(chosen), "seen": steps * batch} | metrics)


def format_table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Format a Markdown table with a row for each set."""
    lines = ["| training set | images | " + " | ".join(COLUMNS) + " |", "|---" * (2 + len(COLUMNS)) + "|"]
    lines += [
        f"| {name} | {runs[0]['images']:,} | " + " | ".join(format_cells(runs, COLUMNS)) + " |"
        for name, runs in rows.items()
    ]
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
    arguments = parser.parse_args()
    outcome = load_result(arguments.pool)
    try:
        refuse_overlap(outcome, read_manifest(arguments.data))
    except UsageError as error:
        parser.error(str(error))
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in arguments.seeds:  # seed by seed: an early stop leaves comparable results
        for name in arguments.only:
            logger.info(f"{name}, seed {seed}")
            out = arguments.output / f"{name}_{arguments.images}_{seed}"
            arguments.output.mkdir(parents=True, exist_ok=True)
            metrics = run_one(
                outcome, name, seed, arguments.data, out, arguments.images, arguments.settings, arguments.device
            )
            rows.setdefault(name, []).append(metrics)
        write_json(arguments.output / "learning.json", rows)
    print(format_table(rows))


if __name__ == "__main__":
    main()
