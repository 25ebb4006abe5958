"""Quickstart: from images to a report and a demo, as calls of the Python API."""

import shlex
import shutil
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import dinomed
from dinomed.adapters.evaluation.mask_baselines import otsu_mask, score_baseline
from dinomed.adapters.fitting.data import masked
from dinomed.adapters.tasks.segment.mask_schema import LESION, MaskSchema
from dinomed.apps.api.data.datasets import scan_with_report
from dinomed.apps.api.inputs import PathLike, Settings, config_path, override_list
from dinomed.apps.api.pretraining import pretrain
from dinomed.apps.cli import command_words
from dinomed.apps.pages.examples import write_examples
from dinomed.apps.quickstart.report import SYNTHETIC, build_report, demo_arguments
from dinomed.apps.quickstart.scope import Scope, find_scope
from dinomed.apps.quickstart.steps import STEPS_FILE, Steps
from dinomed.config import load_config, to_yaml
from dinomed.datasets.manifest import Manifest
from dinomed.device import resolve_device
from dinomed.errors import UsageError
from dinomed.html.album import spaced_indices
from dinomed.images.read import read_image
from dinomed.io.files import read_json, sha256_file, write_json, write_text
from dinomed.io.output_folder import locked, prepare_output
from dinomed.log import logger
from dinomed.notice import RESEARCH_USE
from dinomed.pretrain.config import PretrainConfig
from dinomed.pretrain.run_folder import UNTRAINED

CONFIG, SEGMENT_CONFIG = "quickstart", "segment"
SEGMENT_SETTINGS = ["augment_copies=1"]  # each further copy costs as much time as the features of the images
NUM_EXAMPLES = 6
PROBE_METRICS = ("auroc", "balanced_accuracy")


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
        data: folder of images; None for synthetic lesions, which took 11 minutes on 2 busy cores.
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
        'Plan: pretrain on 60 images, index for similar cases'
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
        masks = steps.run(
            "scan", _scan, folder=images, out=source, labels=labels, group=group, mask=mask, seed=seed, always=True
        )
        steps.depends_on(sha256_file(source))
        manifest = dinomed.open_dataset(source)
        scope = find_scope(manifest, images, seed, all_empty=0 < masks["masks"] == masks["empty"])
        logger.info(f"\n{scope.sentence()}")
        if scope.images < config.run.batch_size:
            overrides.insert(0, f"run.batch_size={scope.images}")
        steps.depends_on(to_yaml(load_config(PretrainConfig, path, overrides)))
        trained = steps.run(
            "pretrain", pretrain, config=CONFIG, data=source, out=run, settings=overrides, device=device
        )
        results: dict[str, Any] = {
            "data": SYNTHETIC if data is None else str(data),
            "images": len(manifest),
            "classes": dict(Counter(filter(None, manifest.column("label")))) if "classify" in scope.tasks else {},
            "scope": scope.sentence(),
            "results": [],
            "classify": None, "classifier": None, "segment": None,
        }  # fmt: skip
        for backbone in (run, run / UNTRAINED):
            _train_heads(steps, scope, backbone, results, seed, data=source, device=device)
        has_train = manifest.has("split") and "train" in manifest.column("split")
        where = ["split=train"] if has_train else None  # no image of test among the cases
        steps.run("index", dinomed.build_index, data=source, backbone=run, out=index, where=where, device=device)
        if scope.tasks.get("segment"):
            results["results"].append({"method": "Otsu's threshold, no model", "dice": _otsu_dice(manifest)})
        results |= {
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
    paths = demo_arguments(results)
    logger.info(f"\n$ dinomed {shlex.join(command_words(['demo', 'all'], paths))}")
    dinomed.demo(**paths, device=device)


def _scan(**arguments: Any) -> dict[str, int]:
    return scan_with_report(**arguments).masks


def _train_heads(steps: Steps, scope: Scope, backbone: Path, results: dict[str, Any], seed: int, **shared: Any) -> None:
    """Train and evaluate the heads on a backbone, and add their folders and metrics to `results`.

    On the untrained backbone only the segmenter is trained, for a comparison on test; the probe compares the classes.
    """
    pretrained, folder = backbone.name != UNTRAINED, shared["data"].parent
    row: dict[str, Any] = {"method": "pretrained here" if pretrained else "the same backbone, untrained"}
    results["results"].append(row)
    if scope.tasks.get("classify"):
        report = steps.run("probe", dinomed.probe, backbone=backbone, seed=seed, **shared)
        row |= {f"{kind}_{name}": report[kind][name] for kind in ("knn", "logistic") for name in PROBE_METRICS}
    for task, measured in scope.tasks.items():
        if not pretrained and (task == "classify" or not measured):
            continue
        adapter = folder / (task if pretrained else f"{task}_untrained")
        recipe: dict[str, Any] = {"config": SEGMENT_CONFIG, "settings": SEGMENT_SETTINGS} if task == "segment" else {}
        train = partial(dinomed.train, task)
        steps.run(f"train {task}", train, backbone=backbone, out=adapter, seed=seed or None, **recipe, **shared)
        if pretrained:
            results[task] = str(adapter)
        if measured:
            page = folder / f"{task}_test" if pretrained else None
            report = steps.run("evaluate", dinomed.evaluate, adapter=adapter, split="test", out=page, **shared)
            if task == "classify":
                results["classifier"] = report["metrics"]
            else:
                row["dice"] = report["metrics"]["dice"]


def _otsu_dice(manifest: Manifest) -> float:
    """Return the mean Dice of Otsu's threshold on the masks of test."""
    test = masked(manifest.select(split="test"))
    schema = MaskSchema("binary", (LESION,), (1,))
    return float(score_baseline(lambda row, _: otsu_mask(read_image(test.path(row)))[None], test, schema).mean())


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
    splits = ("test", "val", "train") if manifest.has("split") else ()
    images = next((images for name in splits if len(images := manifest.select(split=name))), manifest)
    shutil.rmtree(folder, ignore_errors=True)
    write_examples([images.path(row) for row in spaced_indices(len(images), NUM_EXAMPLES)], folder, NUM_EXAMPLES)
    return folder
