"""HTML report of a quickstart: results, evaluation of the heads, training curves, commands, settings, versions."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinomed.apps.api.doctor import doctor
from dinomed.apps.ending import command_line
from dinomed.config import load_config
from dinomed.datasets.manifest import Manifest
from dinomed.html import page
from dinomed.html.plots import curve
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.run_folder import CONFIG_FILE, LOG_FILE, PCA

SYNTHETIC = "synthetic lesions"
COLUMNS = {
    "knn_auroc": "k-NN AUROC",
    "knn_balanced_accuracy": "k-NN bal. acc.",
    "logistic_auroc": "logistic AUROC",
    "logistic_balanced_accuracy": "logistic bal. acc.",
    "dice": "Dice",
}
READING = (
    "Both backbones are frozen and differ only in their weights. AUROC is the mean "
    "over classes, one against the rest; balanced accuracy is the mean recall of the classes."
)
PCA_CAPTION = (
    "Held-out pictures, and the first three principal components of their patch features as colours: similar "
    "colours mean similar features."
)


def results_table(results: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Return the names of columns, and a row for each method; a column without any value is left out."""
    keys = [key for key in COLUMNS if any(key in row for row in results["results"])]
    rows = [[row["method"], *(row.get(key) for key in keys)] for row in results["results"]]
    return ["on the frozen features", *(COLUMNS[key] for key in keys)], rows


def demo_arguments(results: dict[str, Any]) -> dict[str, Any]:
    """Return the adapters, the index and the examples of a quickstart, as arguments of `dinomed.demo`."""
    return {name: results[name] for name in ("segment", "classify", "index", "examples") if results[name]}


def build_report(
    folder: Path,
    results: dict[str, Any],
    trained: dict[str, Any],
    manifest: Manifest,
    seconds: dict[str, float],
    device: str,
) -> str:
    """Return the report as one HTML document.

    Args:
        folder: of the quickstart, with the run folder ``ssl`` and the evaluation pages.
        results: as `dinomed.quickstart` returns them.
        trained: report of the pretraining.
        manifest: all images.
        seconds: command -> its time, s.
        device: option of the quickstart.
    """
    splits = f"{len(manifest):,} images without splits"
    if manifest.has("split"):
        splits = ", ".join(f"{len(manifest.select(split=name)):,} {name}" for name in ("train", "val", "test"))
    parts = [page.paragraph(results["scope"])]
    columns, rows = results_table(results)
    if len(columns) > 1:
        parts += [page.heading("Results on the test split"), page.build_table(columns, rows, best=0)]
        parts.append(page.paragraph(READING))
    if results["data"] == SYNTHETIC:
        parts.append(page.paragraph("Synthetic lesions show that everything works; they say nothing about patients."))
    for task, title in (("classify", "Classifier"), ("segment", "Segmenter")):
        evaluation = folder / f"{task}_test" / "report.html"
        if evaluation.is_file():
            parts += [
                page.heading(f"{title} on the test split"),
                page.parts_of(evaluation.read_text(encoding="utf-8"), task),
            ]
    run = folder / "ssl"
    work = f"{trained['steps']:,} steps on {trained['images']:,} images"
    speed = f"{trained['images_per_second']:.0f} images a second"
    parts += [page.heading("Pretraining"), page.paragraph(f"{work}, {speed}.")]
    if pictures := sorted((run / PCA).glob("*.png")):
        with Image.open(pictures[-1]) as picture:
            parts.append(page.figure(np.asarray(picture.convert("RGB")), PCA_CAPTION, wide=True))
    machine = doctor()
    parts += [
        f"<div>{''.join(_curves(run))}</div>",
        page.heading("The commands"),
        page.code("\n".join(f"{command}  # {time:.0f} s" for command, time in seconds.items())),
        page.heading("Settings and versions"),
        page.folded("all settings of the pretraining", (run / CONFIG_FILE).read_text(encoding="utf-8")),
        page.build_table(["package", "version"], list(machine.packages.items())),
        page.paragraph(f"Python {machine.python} on {machine.system}, device {device}."),
    ]
    if demo := command_line(["demo", "all"], demo_arguments(results)):
        parts += page.next_steps([(demo, "everything in the browser, and your own images")])
    opening = f"Pretrained on {results['images']:,} images ({results['data']})."
    return page.build_page("dinomed quickstart", [page.verdict(opening, f"{splits}."), *page.with_contents(parts)])


def _curves(run: Path) -> list[str]:
    """Return the curves of ``log.jsonl``; log K, the loss of a uniform output, is marked for DINO and iBOT."""
    lines = [json.loads(line) for line in (run / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    objective = load_config(PretrainConfig, run / CONFIG_FILE).objective
    ibot_head = objective.ibot_head if objective.untied_heads else objective.dino_head
    curves: dict[str, tuple[str, dict[str, float]]] = {
        "dino": ("DINO loss (class tokens)", {"log K": math.log(objective.dino_head.prototypes)}),
        "ibot": ("iBOT loss (masked patches)", {"log K": math.log(ibot_head.prototypes)}),
        "koleo": ("KoLeo loss (spread of the features)", {}),
        "target_information": ("information in the teacher's targets, nats (0: collapse)", {}),
    }
    return [
        curve([(line["step"], line[key]) for line in lines if line.get(key) is not None], caption, marks)
        for key, (caption, marks) in curves.items()
    ]
