"""Ablations of the pretraining recipe on a small budget: one run for each config and seed, and a table.

    python benchmarks/pretrain/ablations.py --data runs/derm.parquet --images 19200 --seeds 0 1 -o runs/ablations

All runs see the same number of images, at any batch size. They are evaluated on val, so that choices are made without
the test split. An interrupted call continues where it stopped. Configs whose `start` has settings are initialised from
the weights of `--from`; without it they are left out.
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
from dinomed.datasets.manifest import Manifest, read_manifest
from dinomed.features.extract import default_cache
from dinomed.io.files import write_json
from dinomed.log import logger
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.model.initialisation import InitialisationConfig
from dinomed.pretrain.run_folder import CONFIG_FILE, LOG_FILE
from dinomed.pretrain.trainer import pretrain

BASE = "configs/pretrain/vit_tiny_cpu.yaml"
K = 20
COLUMNS = (
    "knn_auroc",
    "knn_balanced_accuracy",
    "logistic_auroc",
    "logistic_balanced_accuracy",
    "dino",
    "rank",
    "seconds",
)


def goes_on(config: Path) -> bool:
    """Return whether a config is made for initialisation from trained weights."""
    return load_config(PretrainConfig, config).start != InitialisationConfig()


def run_one(
    config: Path, data: Path, manifest: Manifest, out: Path, images: int, seed: int, start: Path | None, device: str
) -> dict[str, Any]:
    """Do one run and return its metrics; a run that is already in `out` is used."""
    done = out / "ablation.json"
    if done.exists():
        return json.loads(done.read_text())
    batch = load_config(PretrainConfig, config).run.batch_size
    steps = max(images // batch, 1)
    settings = [f"run.steps={steps}", f"run.seed={seed}", f"run.checkpoint_every={steps}", "run.knn_images=0"]
    if goes_on(config):
        settings.append(f"start.weights={start}")
    resolved = load_config(PretrainConfig, config, settings)
    result = pretrain(resolved, data, out, device=device, resume=(out / CONFIG_FILE).exists())
    last = [json.loads(line) for line in (out / LOG_FILE).read_text().splitlines()][-1]
    backbone = load_backbone(out, device=device)
    found = probe(backbone, manifest, cache=default_cache(data), split="val")
    knn = next(row for row in found["knn"]["tried"] if row["k"] == K)
    figures = {
        "knn_auroc": knn["auroc"],
        "knn_balanced_accuracy": knn["balanced_accuracy"],
        "logistic_auroc": found["logistic"]["auroc"],
        "logistic_balanced_accuracy": found["logistic"]["balanced_accuracy"],
        "dino": last.get("dino"),
        "rank": last.get("rank"),
        "seconds": result.seconds,
    }
    write_json(done, figures)
    return figures


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Format a Markdown table: a row for each config, values as means over seeds, with their range if there are
    several."""
    lines = ["| config | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name, runs in rows.items():
        cells = []
        for column in COLUMNS:
            values = [run[column] for run in runs if run[column] is not None]
            digits = 0 if column == "seconds" else 3
            spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.{digits}f}{spread}" if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--configs", type=Path, default=Path("configs/ablations"))
    parser.add_argument("--only", nargs="*", help="names of configs; `base` is the unchanged recipe")
    parser.add_argument(
        "--from", dest="start", type=Path, help="backbone or run folder for configs that are initialised from weights"
    )
    parser.add_argument("--images", type=int, default=19200, help="images that each run sees")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()

    manifest = read_manifest(arguments.data)
    configs = {"base": find_config(BASE)} | {path.stem: path for path in sorted(arguments.configs.glob("*.yaml"))}
    unknown = sorted(set(arguments.only or ()) - configs.keys())
    if unknown:
        parser.error(f"no config {unknown[0]!r}; there are {', '.join(configs)}")
    names = arguments.only or [name for name, path in configs.items() if arguments.start or not goes_on(path)]
    if arguments.start is None and (first := next((name for name in names if goes_on(configs[name])), None)):
        parser.error(f"config {first!r} goes on from trained weights; give them by --from")
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        for seed in arguments.seeds:
            logger.info(f"{name}, seed {seed}")
            out = arguments.output / f"{name}_{arguments.images}_{seed}"
            figures = run_one(
                configs[name], arguments.data, manifest, out, arguments.images, seed, arguments.start, arguments.device
            )
            rows.setdefault(name, []).append(figures)
        write_json(arguments.output / "ablations.json", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
