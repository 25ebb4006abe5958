"""Quickstart: scan, pretrain, probe, train and evaluate heads, report. Each step runs a command and prints it.

After the scan, `dinomed.apps.quickstart.scope` decides which steps the images allow; these steps are printed.
"""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinomed.apps.quickstart.journal import JOURNAL, Journal
from dinomed.apps.quickstart.scope import Scope, find_scope
from dinomed.apps.quickstart.table import COLUMNS, SYNTHETIC, probe_columns, table_of
from dinomed.config import load_config, to_yaml
from dinomed.configs import find_config
from dinomed.datasets.manifest import read_manifest
from dinomed.errors import UsageError
from dinomed.io.files import sha256_file, write_json, write_text
from dinomed.io.output_folder import locked, prepare_output
from dinomed.log import logger
from dinomed.notice import RESEARCH_USE
from dinomed.pretrain.run_folder import UNTRAINED

__all__ = ["COLUMNS", "NUM_EXAMPLES", "Plan", "run_quickstart", "show_results"]

CONFIG = "configs/pretrain/quickstart.yaml"
SEGMENT_CONFIG = "configs/adapters/segment.yaml"
NUM_EXAMPLES = 6


@dataclass(frozen=True)
class Plan:
    """The options of ``dinomed quickstart``; see its help."""

    folder: Path
    data: Path | None = None
    labels: str | None = None
    group: str | None = None
    mask: str | None = None
    count: int = 600
    overrides: tuple[str, ...] = ()
    seed: int = 0
    device: str = "auto"
    quiet: bool = False

    @property
    def device_options(self) -> list[str]:
        return ["--device", self.device] if self.device != "auto" else []

    @property
    def seed_options(self) -> list[str]:
        return ["--seed", str(self.seed)] if self.seed else []


def run_quickstart(plan: Plan) -> dict[str, Any]:
    """Run all steps that the images allow.

    Returns:
        The results, which the table, ``results.json`` and the report show.

    Raises:
        UsageError: the folder of images is missing, has too few images, or contains the output folder; or a step fails.
        DinomedError: another process uses the output folder.
    """
    if plan.data is not None and plan.folder.resolve().is_relative_to(plan.data.resolve()):
        raise UsageError(
            f"output {plan.folder} is inside the folder of images, and the next scan would include it; "
            "choose another folder with -o"
        )
    _check_settings(plan)
    prepare_output(plan.folder, overwrite=True, marker=JOURNAL)
    with locked(plan.folder):
        return _run(plan, Journal(plan.folder, ["--quiet"] if plan.quiet else []))


def _check_settings(plan: Plan) -> None:
    """Check settings and device before the first step, so that no later step refuses them."""
    from dinomed.device import resolve_device
    from dinomed.pretrain.config import PretrainConfig

    load_config(PretrainConfig, find_config(CONFIG), plan.overrides)
    resolve_device(plan.device)


def _run(plan: Plan, journal: Journal) -> dict[str, Any]:
    start = time.monotonic()
    images = plan.data or _draw_lesions(plan)
    path = plan.folder / "images.parquet"
    scanned = journal.run("scan", images, *_scan_options(plan, images), "-o", path, output=path, always=True)
    journal.depends_on(sha256_file(path))
    manifest, masks = read_manifest(path), scanned["masks"]
    scope = find_scope(manifest, images, plan.seed, all_empty=masks["masks"] == masks["empty"])
    logger.info(f"\n{scope.sentence()}")

    run = plan.folder / "ssl"
    pretrained = _pretrain(plan, journal, scope.images, path, run)
    rows: list[dict[str, Any]] = [{"method": "pretrained here"}, {"method": "the same backbone, untrained"}]
    backbones = (run, run / UNTRAINED)
    classifier = _classify(plan, journal, scope, path, backbones, rows)
    segmenter = _segment(plan, journal, scope, path, backbones, rows)

    from dinomed.apps.quickstart.report import ReportData, write_report

    report_data = ReportData(manifest, scanned, scope, pretrained, run, segmenter)
    examples = plan.folder / "examples"
    written = report_data.write_examples(examples, NUM_EXAMPLES) if segmenter else []
    if scope.judge_masks:
        rows.append({"method": "Otsu's threshold, no model", "dice": report_data.otsu_dice()})
    results = {
        "data": SYNTHETIC if plan.data is None else str(plan.data),
        "images": scanned["images"],
        "classes": scanned["classes"],
        "scope": scope.sentence(),
        "results": rows,
        "classifier": classifier,
        "segmenter": segmenter and str(segmenter),
        "examples": str(examples) if written else None,
        "report": str(plan.folder / "report.html"),
        "seconds": round(time.monotonic() - start, 1),
        "note": RESEARCH_USE,
    }
    write_json(plan.folder / "results.json", results)
    write_text(plan.folder / "report.html", write_report(report_data, results, journal, plan.device))
    return results


def _classify(
    plan: Plan, journal: Journal, scope: Scope, data: Path, backbones: Sequence[Path], rows: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """Probe both backbones, and train a classifier on the first; metrics of the probes are added to `rows`.

    Returns:
        The metrics of the classifier on test; None if there are none.
    """
    options = [*plan.seed_options, *plan.device_options]
    if scope.judge_classes:
        for row, backbone in zip(rows, backbones, strict=True):
            row |= probe_columns(journal.run("probe", backbone, "--data", data, *options))
    if not scope.classify:
        return None
    adapter = plan.folder / "cls"
    journal.run(
        "train", "classify", "--backbone", backbones[0], "--data", data, "-o", adapter, *options, output=adapter
    )
    if not scope.judge_classes:
        return None
    return journal.run("evaluate", adapter, "--data", data, "--split", "test", *plan.device_options)["metrics"]


def _segment(
    plan: Plan, journal: Journal, scope: Scope, data: Path, backbones: Sequence[Path], rows: list[dict[str, Any]]
) -> Path | None:
    """Train a segmenter on the first backbone. If test has masks, train on both, and add their Dice to `rows`.

    Returns:
        The first adapter folder; None if no segmenter is trained.
    """
    if not scope.segment:
        return None
    adapters = (plan.folder / "seg", plan.folder / "seg_untrained") if scope.judge_masks else (plan.folder / "seg",)
    for row, backbone, adapter in zip(rows, backbones, adapters, strict=False):
        journal.run(
            "train", "segment", "--backbone", backbone, "--data", data, "-o", adapter, "--config", SEGMENT_CONFIG,
            *plan.seed_options, *plan.device_options, output=adapter,
        )  # fmt: skip
        if scope.judge_masks:
            report = journal.run("evaluate", adapter, "--data", data, "--split", "test", *plan.device_options)
            row["dice"] = report["metrics"]["dice"]
    return adapters[0]


def show_results(results: dict[str, Any]) -> Any:
    """Return the table of methods and their results on the test split."""
    from dinomed.apps.output import build_table

    title = f"{results['images']:,} images ({results['data']}), test split; {RESEARCH_USE}"
    return build_table(*table_of(results), title=title)


def _draw_lesions(plan: Plan) -> Path:
    """Return the folder of synthetic lesions. Draw them if they are incomplete, or have another seed or count."""
    from dinomed.datasets.synthetic.lesions import write_lesions

    folder, note = plan.folder / "lesions", plan.folder / "lesions.json"
    settings = {"count": plan.count, "seed": plan.seed}
    if note.exists() and json.loads(note.read_text()) == settings and (folder / "labels.csv").exists():
        return folder
    if note.exists():
        shutil.rmtree(folder, ignore_errors=True)  # the note shows that a quickstart wrote this folder
    write_json(note, settings)
    logger.info(f"drawing {plan.count} synthetic lesion images into {folder}")
    return write_lesions(folder, count=plan.count, seed=plan.seed)


def _scan_options(plan: Plan, images: Path) -> list[str]:
    if plan.data is None:
        return ["--labels", "labels.csv", "--group", "lesion_id"]
    labels = plan.labels or ("labels.csv" if (images / "labels.csv").is_file() else None)
    options = {"--labels": labels, "--group": plan.group, "--mask": plan.mask}
    return [word for option, value in options.items() if value for word in (option, value)] + plan.seed_options


def _pretrain(plan: Plan, journal: Journal, images: int, data: Path, out: Path) -> dict[str, Any]:
    from dinomed.pretrain.config import PretrainConfig

    overrides = list(plan.overrides)
    config = load_config(PretrainConfig, find_config(CONFIG), overrides)
    if images < config.run.batch_size:  # fewer images than a batch
        overrides.insert(0, f"run.batch_size={images}")
    if plan.seed:
        overrides.append(f"run.seed={plan.seed}")
    journal.depends_on(to_yaml(load_config(PretrainConfig, find_config(CONFIG), overrides)))
    settings = [word for override in overrides for word in ("--set", override)]
    options = ["--data", data, "-o", out, *settings, *plan.device_options]
    return journal.run("pretrain", CONFIG, *options, output=out, resume=True)
