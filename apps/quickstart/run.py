"""Quickstart: from images to a report and a demo, as calls of the Python API."""

import shlex
import shutil
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import dinomed
from dinomed.apps.api.datasets import scan_with_report
from dinomed.apps.api.inputs import PathLike, Settings, config_path, override_list
from dinomed.apps.api.pretraining import pretrain
from dinomed.apps.cli import command_words
from dinomed.apps.pages.examples import write_examples
from dinomed.apps.quickstart.baselines import otsu_dice
from dinomed.apps.quickstart.report import PROBE_METRICS, SYNTHETIC, build_report
from dinomed.apps.quickstart.scope import Scope, find_scope
from dinomed.apps.quickstart.steps import STEPS_FILE, Steps
from dinomed.config import load_config, to_yaml
from dinomed.datasets.manifest import Manifest
from dinomed.device import resolve_device
from dinomed.errors import UsageError
from dinomed.html.album import spaced_indices
from dinomed.io.files import read_json, sha256_file, write_json, write_text
from dinomed.io.output_folder import locked, prepare_output
from dinomed.log import logger
from dinomed.notice import RESEARCH_USE
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.run_folder import UNTRAINED

CONFIG, SEGMENT_CONFIG = "quickstart", "segment"
NUM_EXAMPLES = 6


def quickstart(
    out: PathLike = "runs/quickstart",
    *,
    data: PathLike | None = None,
    labels: str | None = None,
    group: str | None = None,
    mask: str | None = None,
    count: int = 600,
    settings: Settings | None = None,
    seed: int = 0,
    device: str = "auto",
    demo: bool = False,
) -> dict[str, Any]:
    """Run the main steps once: scan, pretrain, train heads, evaluate, index, report, demo.

    Each step calls a function of `dinomed` and is printed as its command. The same call continues an interrupted
    quickstart. Images need labels for classification, and masks for segmentation. The command is
    ``dinomed quickstart``.

    Args:
        out: folder for all results.
        data: folder of images; None for synthetic lesions, which take about 15 minutes on 2 cores.
        labels: as in `dinomed.scan`; None for labels.csv in the folder, if it exists.
        group: as in `dinomed.scan`.
        mask: as in `dinomed.scan`.
        count: number of synthetic images.
        settings: settings of the pretraining that override the config, such as ``{"run.steps": 20}``.
        seed: seed of all steps.
        device: auto, cpu, cuda, cuda:N or mps.
        demo: at the end, serve the demo of all results until a signal arrives.

    Returns:
        The results, as in results.json: metrics of both backbones (pretrained and untrained), and the paths of the
        adapters, the index and the report.

    Raises:
        UsageError: the folder of images is missing, has too few images, or contains `out`; or a step fails.
        DinomedError: another process uses `out`.

    Example:
        >>> tiny = {"run.steps": 1, "run.batch_size": 8, "run.workers": 0, "crops.num_local": 1, "backbone.depth": 1}
        >>> results = dinomed.quickstart("runs/quick", data="lesions/images", settings=tiny)   # images without labels
        >>> results["scope"].split(". Not done:")[0]
        'Plan: pretrain on 42 images, index for similar cases'
    """
    folder = Path(out)
    if data is not None and folder.resolve().is_relative_to(Path(data).resolve()):
        raise UsageError(
            f"output {out} is inside the folder of images, and the next scan would include it; "
            "choose another folder with `out`"
        )
    overrides = override_list(settings, run__seed=seed or None)
    path = config_path(CONFIG, "pretrain")
    config = load_config(PretrainConfig, path, overrides)  # settings and device are checked before the first step
    resolve_device(device)
    prepare_output(folder, overwrite=True, marker=STEPS_FILE)
    with locked(folder):
        start, steps = time.monotonic(), Steps(folder)
        source, run, index = folder / "images.parquet", folder / "ssl", folder / "index"
        images = Path(data or folder / "lesions")
        if data is None:
            draw_lesions(images, count, seed)
            group = "lesion_id"
        labels = labels or ("labels.csv" if (images / "labels.csv").is_file() else None)
        scanned = steps.run(
            "scan", _scan, folder=images, out=source, labels=labels, group=group, mask=mask, seed=seed, always=True
        )
        steps.depends_on(sha256_file(source))
        manifest, masks = dinomed.open_dataset(source), scanned["masks"]
        scope = find_scope(manifest, images, seed, all_empty=0 < masks["masks"] == masks["empty"])
        logger.info(f"\n{scope.sentence()}")
        if scope.images < config.run.batch_size:
            overrides.insert(0, f"run.batch_size={scope.images}")
        steps.depends_on(to_yaml(load_config(PretrainConfig, path, overrides)))
        trained = steps.run(
            "pretrain", pretrain, config=CONFIG, data=source, out=run, settings=overrides, device=device
        )
        rows: list[dict[str, Any]] = [{"method": "pretrained here"}, {"method": "the same backbone, untrained"}]
        heads = _train_heads(steps, scope, source, dict(zip((run, run / UNTRAINED), rows, strict=True)), seed, device)
        where = ["split=train"] if "train" in manifest.column("split") else None  # no image of test among the cases
        steps.run("index", dinomed.build_index, data=source, backbone=run, out=index, where=where, device=device)
        if scope.judge_masks:
            rows.append({"method": "Otsu's threshold, no model", "dice": otsu_dice(manifest.select(split="test"))})
        results = {
            "data": SYNTHETIC if data is None else str(data),
            "images": len(manifest),
            "classes": dict(Counter(manifest.column("label"))) if scope.classes else {},
            "scope": scope.sentence(),
            "results": rows,
            **heads,
            "index": str(index),
            "examples": str(_write_examples(manifest, folder / "examples")),
            "report": str(folder / "report.html"),
            "seconds": round(time.monotonic() - start, 1),
            "note": RESEARCH_USE,
        }
        write_json(folder / "results.json", results)
        write_text(folder / "report.html", build_report(folder, results, trained, manifest, steps.seconds, device))
    if demo:
        show_demo(results, device)
    return results


def show_demo(results: dict[str, Any], device: str = "auto") -> None:
    """Serve the demo of all results until a signal arrives."""
    paths = {name: results[name] for name in ("segment", "classify", "index", "examples") if results[name]}
    logger.info(f"\n$ dinomed {shlex.join(command_words(['demo', 'all'], paths))}")
    dinomed.demo(**paths, device=device)


def _scan(**arguments: Any) -> dict[str, Any]:
    return {"masks": scan_with_report(**arguments).masks}


def _train_heads(
    steps: Steps, scope: Scope, source: Path, rows: dict[Path, dict[str, Any]], seed: int, device: str
) -> dict[str, Any]:
    """Train and evaluate the heads; add the metrics of each backbone on test to its row.

    Returns:
        The adapter folders on the first backbone (`classify`, `segment`), or None; and the metrics of the classifier.
    """
    adapters: dict[str, Any] = {"classify": None, "classifier": None, "segment": None}
    shared: dict[str, Any] = {"data": source, "device": device}
    for backbone, row in rows.items() if scope.judge_classes else ():
        report = steps.run("probe", dinomed.probe, backbone=backbone, seed=seed, **shared)
        row |= {f"{method}_{metric}": report[method][metric] for method, metric in PROBE_METRICS}
    backbones = list(rows)
    fits: list[tuple[str, Path, str | None]] = [("classify", backbones[0], None)] if scope.classes else []
    if scope.masks:
        fits += [("segment", backbone, SEGMENT_CONFIG) for backbone in backbones[: 1 + scope.judge_masks]]
    for task, backbone, config in fits:
        is_first = backbone == backbones[0]
        adapter = source.parent / (task if is_first else f"{task}_untrained")
        steps.run(
            f"train {task}", partial(dinomed.train, task), backbone=backbone, out=adapter, config=config,
            seed=seed or None, **shared,
        )  # fmt: skip
        adapters[task] = adapters[task] or str(adapter)
        if scope.judge_classes if task == "classify" else scope.judge_masks:
            page = source.parent / f"{task}_test" if is_first else None
            report = steps.run("evaluate", dinomed.evaluate, adapter=adapter, split="test", out=page, **shared)
            if task == "classify":
                adapters["classifier"] = report["metrics"]
            else:
                rows[backbone]["dice"] = report["metrics"]["dice"]
    return adapters


def draw_lesions(folder: Path, count: int, seed: int) -> None:
    """Draw synthetic lesions, unless the folder has them with the same seed and count."""
    from dinomed.datasets.synthetic.lesions import write_lesions

    note, settings = folder.with_suffix(".json"), {"count": count, "seed": seed}
    if note.exists() and read_json(note) == settings and (folder / "labels.csv").exists():
        return
    if note.exists():
        shutil.rmtree(folder, ignore_errors=True)  # the note shows that a quickstart wrote this folder
    write_json(note, settings)
    logger.info(f"drawing {count} synthetic lesion images into {folder}")
    write_lesions(folder, count=count, seed=seed)


def _write_examples(manifest: Manifest, folder: Path) -> Path:
    """Write images for the demo: of test if there are any (not seen in training), else of val, else of train."""
    splits = [manifest.select(split=split) for split in ("test", "val", "train")]
    images = next((images for images in splits if len(images)), manifest)
    shutil.rmtree(folder, ignore_errors=True)
    write_examples([images.path(row) for row in spaced_indices(len(images), NUM_EXAMPLES)], folder, NUM_EXAMPLES)
    return folder
