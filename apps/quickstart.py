"""The main job in one go: every step is a command of its own, printed as it runs; then a table and a report.

pictures -> scan -> pretrain -> probe -> train classify, train segment -> evaluate -> report
"""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinomed.apps.journal import JOURNAL, Journal
from dinomed.config import load_config, to_yaml
from dinomed.configs import find_config
from dinomed.datasets.manifest import read_manifest
from dinomed.errors import UsageError
from dinomed.files import locked, prepare_output, sha256_file, write_json, write_text
from dinomed.progress import say

CONFIG = "configs/pretrain/quickstart.yaml"
SEGMENT_CONFIG = "configs/adapters/segment.yaml"
COLUMNS = {
    "knn_auroc": "k-NN AUROC",
    "knn_balanced_accuracy": "k-NN bal. acc.",
    "logistic_auroc": "logistic AUROC",
    "logistic_balanced_accuracy": "logistic bal. acc.",
    "dice": "Dice",
}
NUM_EXAMPLES = 6


@dataclass(frozen=True)
class Plan:
    """What was asked for; see `dinomed quickstart --help`."""

    folder: Path
    data: Path | None = None
    labels: str | None = None
    group: str | None = None
    count: int = 600
    overrides: tuple[str, ...] = ()
    seed: int = 0
    device: str = "auto"
    quiet: bool = False


def run_quickstart(plan: Plan) -> dict[str, Any]:
    """Run every step that the images allow; the results as the table, ``results.json`` and the report show them.

    Without labels nothing is probed or classified, without masks nothing is segmented; this is said.

    Raises:
        UsageError: the folder of images is missing or holds none, or a step is refused.
    """
    prepare_output(plan.folder, overwrite=True, marker=JOURNAL)
    with locked(plan.folder):
        return _run(plan, Journal(plan.folder, ["--quiet"] if plan.quiet else []))


def _run(plan: Plan, journal: Journal) -> dict[str, Any]:
    began = time.monotonic()
    images = plan.data or _draw_lesions(plan)
    manifest = plan.folder / "images.parquet"
    scanned = journal.run("scan", images, *_scan_options(plan, images), "-o", manifest, output=manifest, always=True)
    journal.depends_on(sha256_file(manifest))
    has_labels = _has_labels(scanned)
    has_masks = scanned["masks"]["masks"] > 0

    ssl, untrained = plan.folder / "ssl", plan.folder / "ssl" / "untrained"
    pretrained = _pretrain(plan, journal, scanned, manifest, ssl)

    on_device = ["--device", plan.device] if plan.device != "auto" else []
    seeded = ["--seed", plan.seed, *on_device] if plan.seed else on_device
    rows: list[dict[str, Any]] = [{"method": "pretrained here"}, {"method": "the same backbone, untrained"}]
    segmenter = plan.folder / "seg"
    if has_labels:
        for row, backbone in zip(rows, (ssl, untrained), strict=True):
            row |= _flatten_probe(journal.run("probe", backbone, "--data", manifest, *on_device))
        classifier = plan.folder / "cls"
        wanted = ["--backbone", ssl, "--data", manifest, "-o", classifier]
        journal.run("train", "classify", *wanted, *seeded, output=classifier)
        evaluated = journal.run("evaluate", classifier, "--data", manifest, "--split", "test", *on_device)
    else:
        evaluated = None
        say("no labels: nothing to probe or classify (give --labels, or a folder for each class)")
    if has_masks:
        for row, backbone, adapter in zip(
            rows, (ssl, untrained), (segmenter, plan.folder / "seg_untrained"), strict=True
        ):
            wanted = ["--backbone", backbone, "--data", manifest, "-o", adapter]
            journal.run("train", "segment", *wanted, "--config", SEGMENT_CONFIG, *seeded, output=adapter)
            told = journal.run("evaluate", adapter, "--data", manifest, "--split", "test", *on_device)
            row["dice"] = told["metrics"]["dice"]
    else:
        say("no masks: no segmentation and no demo (masks in a folder `masks`, named as their images, are found)")

    from dinomed.apps.quickstart_report import Findings, write_report

    found = segmenter if has_masks else None
    findings = Findings(read_manifest(manifest), scanned, pretrained, ssl, found)
    if has_masks:
        rows.append({"method": "Otsu's threshold, no model", "dice": findings.otsu_dice()})
        findings.copy_examples(plan.folder / "examples", NUM_EXAMPLES)
    results = {
        "data": "synthetic lesions" if plan.data is None else str(plan.data),
        "images": scanned["images"],
        "classes": scanned["classes"],
        "results": rows,
        "classifier": evaluated and evaluated["metrics"],
        "segmenter": found and str(found),
        "examples": found and str(plan.folder / "examples"),
        "report": str(plan.folder / "report.html"),
        "seconds": round(time.monotonic() - began, 1),
        "note": "for research use only",
    }
    write_json(plan.folder / "results.json", results)
    write_text(plan.folder / "report.html", write_report(findings, results, journal, plan.device))
    return results


def show_results(results: dict[str, Any]) -> Any:
    """The table of methods and their results on the test split."""
    from dinomed.apps.output import build_table

    columns, rows = table_of(results)
    title = f"{results['images']:,} images ({results['data']}), test split; for research use only"
    return build_table(columns, rows, title=title)


def table_of(results: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Column names and rows, with the columns that any method has a value in."""
    known = [key for key in COLUMNS if any(key in row for row in results["results"])]
    rows = [[row["method"], *(row.get(key) for key in known)] for row in results["results"]]
    return ["on the frozen features", *(COLUMNS[key] for key in known)], rows


def _draw_lesions(plan: Plan) -> Path:
    """The synthetic collection of this seed and size; drawn again if it is another one, or was cut short."""
    from dinomed.datasets.synthetic import write_lesions

    folder, note = plan.folder / "lesions", plan.folder / "lesions.json"
    wanted = {"count": plan.count, "seed": plan.seed}
    if note.exists() and json.loads(note.read_text()) == wanted and (folder / "labels.csv").exists():
        return folder
    if note.exists():
        shutil.rmtree(folder, ignore_errors=True)  # our own, as the note beside it says
    write_json(note, wanted)
    say(f"drawing {plan.count} synthetic lesion pictures into {folder}")
    return write_lesions(folder, count=plan.count, seed=plan.seed)


def _scan_options(plan: Plan, images: Path) -> list[str]:
    if plan.data is None:
        return ["--labels", "labels.csv", "--group", "lesion_id"]
    labels = plan.labels or ("labels.csv" if (images / "labels.csv").is_file() else None)
    options = ["--labels", labels] if labels else []
    options += ["--group", plan.group] if plan.group else []
    return [*options, *(["--seed", str(plan.seed)] if plan.seed else [])]


def _has_labels(scanned: dict[str, Any]) -> bool:
    """At least two classes to learn, and images of them to judge by."""
    splits = scanned["splits"]
    return all(len(splits.get(name, {}).get("classes", {})) >= 2 for name in ("train", "test"))


def _pretrain(plan: Plan, journal: Journal, scanned: dict[str, Any], manifest: Path, out: Path) -> dict[str, Any]:
    from dinomed.pretrain.config import PretrainConfig

    overrides = list(plan.overrides)
    config = load_config(PretrainConfig, find_config(CONFIG), overrides)
    train = scanned["splits"].get("train", scanned)["images"]
    if train < 4:
        raise UsageError(f"{train} images to train on; a backbone needs hundreds at the least")
    if train < config.run.batch_size:  # a small collection of the user's own
        overrides.insert(0, f"run.batch_size={train}")
    if plan.seed:
        overrides.append(f"run.seed={plan.seed}")
    journal.depends_on(to_yaml(load_config(PretrainConfig, find_config(CONFIG), overrides)))
    sets = [word for override in overrides for word in ("--set", override)]
    on_device = ["--device", plan.device] if plan.device != "auto" else []
    return journal.run("pretrain", CONFIG, "--data", manifest, "-o", out, *sets, *on_device, output=out, resume=True)


def _flatten_probe(report: dict[str, Any]) -> dict[str, float]:
    """What `dinomed probe` reports, in the columns of the table."""
    names = ("auroc", "balanced_accuracy")
    return {f"{method}_{name}": report[method][name] for method in ("knn", "logistic") for name in names}
