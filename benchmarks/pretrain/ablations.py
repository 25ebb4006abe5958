"""Ablations of the pretraining recipe on a small budget: one run for each config and seed, and a table.

    python benchmarks/pretrain/ablations.py --data runs/derm.parquet --images 19200 --seeds 0 1 -o runs/ablations

All runs see the same number of images, at any batch size. They are evaluated on val, so that choices are made without
the test split. An interrupted call continues where it stopped. Configs whose `start` has settings are initialised from
the weights of `--from`; without it they are left out.
"""

import argparse
from pathlib import Path
from typing import Any

from runs import count_steps, format_cells, read_finished, train_and_evaluate, write_finished

from dinomed.config import load_config
from dinomed.configs import find_config
from dinomed.io.files import write_json
from dinomed.log import logger
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.model.config import InitialisationConfig

BASE = "configs/pretrain/vit_tiny_cpu.yaml"
COLUMNS = (
    "knn_auroc",
    "knn_balanced_accuracy",
    "logistic_auroc",
    "logistic_balanced_accuracy",
    "dino",
    "rank",
    "seconds",
)


def needs_weights(config: Path) -> bool:
    """Return whether a config is made for initialisation from trained weights."""
    return load_config(PretrainConfig, config).start != InitialisationConfig()


def run_one(
    config: Path, data: Path, out: Path, images: int, seed: int, start: Path | None, device: str
) -> dict[str, Any]:
    """Do one run and return its metrics; a run that is already in `out` is used."""
    path = out / "ablation.json"
    if (finished := read_finished(path)) is not None:
        return finished
    steps, _ = count_steps(config, [], images)
    settings = [f"run.steps={steps}", f"run.seed={seed}", f"run.checkpoint_every={steps}", "run.knn_images=0"]
    if needs_weights(config):
        settings.append(f"start.weights={start}")
    return write_finished(path, train_and_evaluate(config, settings, data, data, out, device))


def format_table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Format a Markdown table with a row for each config."""
    lines = ["| config | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    lines += [f"| {name} | " + " | ".join(format_cells(runs, COLUMNS)) + " |" for name, runs in rows.items()]
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

    configs = {"base": find_config(BASE)} | {path.stem: path for path in sorted(arguments.configs.glob("*.yaml"))}
    unknown = sorted(set(arguments.only or ()) - configs.keys())
    if unknown:
        parser.error(f"no config {unknown[0]!r}; there are {', '.join(configs)}")
    names = arguments.only or [name for name, path in configs.items() if arguments.start or not needs_weights(path)]
    if arguments.start is None and (first := next((name for name in names if needs_weights(configs[name])), None)):
        parser.error(f"config {first!r} is initialised from trained weights; add --from WEIGHTS")
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        for seed in arguments.seeds:
            logger.info(f"{name}, seed {seed}")
            out = arguments.output / f"{name}_{arguments.images}_{seed}"
            metrics = run_one(
                configs[name], arguments.data, out, arguments.images, seed, arguments.start, arguments.device
            )
            rows.setdefault(name, []).append(metrics)
        write_json(arguments.output / "ablations.json", rows)
    print(format_table(rows))


if __name__ == "__main__":
    main()
