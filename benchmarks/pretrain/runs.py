"""Small pretraining runs and their evaluation, for `ablations.py` and `curation_learning.py`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinomed.adapters.evaluation.probe import probe
from dinomed.backbones.load import load_backbone
from dinomed.config import load_config
from dinomed.datasets.manifest import read_manifest
from dinomed.features.extract import default_cache
from dinomed.io.files import write_json
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.run_folder import CONFIG_FILE, LOG_FILE
from dinomed.pretrain.trainer import pretrain

K = 20  # neighbours of the k-NN classifier


def count_steps(config: Path, settings: Sequence[str], images: int) -> tuple[int, int]:
    """Return the steps in which a run sees about `images` images, and its batch size."""
    batch = load_config(PretrainConfig, config, settings).run.batch_size
    return max(images // batch, 1), batch


def train_and_evaluate(
    config: Path, settings: Sequence[str], images: Path, evaluation_data: Path, out: Path, device: str
) -> dict[str, Any]:
    """Pretrain on `images`, or continue the run in `out`, and evaluate frozen features on val of `evaluation_data`."""
    resolved = load_config(PretrainConfig, config, settings)
    result = pretrain(resolved, images, out, device=device, resume=(out / CONFIG_FILE).exists())
    last_step = [json.loads(line) for line in (out / LOG_FILE).read_text().splitlines()][-1]
    backbone = load_backbone(out, device=device)
    scores = probe(backbone, read_manifest(evaluation_data), cache=default_cache(evaluation_data), split="val")
    knn, logistic = next(row for row in scores["knn"]["tried"] if row["k"] == K), scores["logistic"]
    return {
        "knn_auroc": knn["auroc"],
        "knn_balanced_accuracy": knn["balanced_accuracy"],
        "logistic_auroc": logistic["auroc"],
        "logistic_balanced_accuracy": logistic["balanced_accuracy"],
        "dino": last_step.get("dino"),
        "rank": last_step.get("rank"),
        "seconds": result.seconds,
    }


def read_finished(path: Path) -> dict[str, Any] | None:
    """Return the metrics of a run that was finished by an earlier call, or None."""
    return json.loads(path.read_text()) if path.exists() else None


def write_finished(path: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    """Write the metrics of a finished run and return them."""
    write_json(path, metrics)
    return metrics


def format_cells(runs: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """Return a cell for each column: the mean over runs, with the range if there are several."""
    cells = []
    for column in columns:
        values = [run[column] for run in runs if run[column] is not None]
        digits = 0 if column == "seconds" else 3
        limits = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
        cells.append(f"{np.mean(values):.{digits}f}{limits}" if values else "")
    return cells
