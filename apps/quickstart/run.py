"""The main job in one go: every step is a command of its own, printed as it runs; then a table and a report.

pictures -> scan -> pretrain -> probe -> train classify, train segment -> evaluate -> report
Which of these the images allow is decided, and said, after the scan (`dinomed.apps.quickstart.scope`).
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
from dinomed.config import load_config, to_yaml
from dinomed.configs import find_config
from dinomed.datasets.manifest import read_manifest
from dinomed.errors import UsageError
from dinomed.io.files import sha256_file, write_json, write_text
from dinomed.io.output_folder import locked, prepare_output
from dinomed.log import logger
from dinomed.notice import RESEARCH_USE

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
SYNTHETIC = "synthetic lesions"


@dataclass(frozen=True)
class Plan:
    """What was asked for; see `dinomed quickstart --help`."""

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


def run_quickstart(plan: Plan) -> dict[str, Any]:
    """Run every step that the images allow; the results as the table, ``results.json`` and the report show them.

    What is done, and what not and why, is said in one line once the images are known, before anything is trained.

    Raises:
        UsageError: the folder of images is missing, holds too few, or holds the output folder; or a step is refused.
        DinomedError: another process works in the output folder.
    """
    if plan.data is not None and plan.folder.resolve().is_relative_to(plan.data.resolve()):
        raise UsageError(
            f"output {plan.folder} lies in the folder of the images, and would be scanned as one of them next time; "
            "choose another with -o"
        )
    _check_settings(plan)
    prepare_output(plan.folder, overwrite=True, marker=JOURNAL)
    with locked(plan.folder):
        return _run(plan, Journal(plan.folder, ["--quiet"] if plan.quiet else []))


def _check_settings(plan: Plan) -> None:
    """What the steps would refuse after minutes of work, at once."""
    from dinomed.device import resolve_device
    from dinomed.pretrain.config import PretrainConfig

    load_config(PretrainConfig, find_config(CONFIG), plan.overrides)
    resolve_device(plan.device)


def _run(plan: Plan, journal: Journal) -> dict[str, Any]:
    from dinomed.pretrain.run_folder import UNTRAINED

    began = time.monotonic()
    images = plan.data or _draw_lesions(plan)
    path = plan.folder / "images.parquet"
    scanned = journal.run("scan", images, *_scan_options(plan, images), "-o", path, output=path, always=True)
    journal.depends_on(sha256_file(path))
    manifest, masks = read_manifest(path), scanned["masks"]
    scope = find_scope(manifest, images, plan.seed, all_empty=masks["masks"] == masks["empty"])
    logger.info(f"\n{scope.sentence()}")

    ssl = plan.folder / "ssl"
    pretrained = _pretrain(plan, journal, scope.images, path, ssl)
    rows: list[dict[str, Any]] = [{"method": "pretrained here"}, {"method": "the same backbone, untrained"}]
    backbones = (ssl, ssl / UNTRAINED)
    classifier = _classify(plan, journal, scope, path, backbones, rows)
    segmenter = _segment(plan, journal, scope, path, backbones, rows)

    from dinomed.apps.quickstart.report import Findings, write_report

    findings = Findings(manifest, scanned, scope, pretrained, ssl, segmenter)
    examples = plan.folder / "examples"
    written = findings.write_examples(examples, NUM_EXAMPLES) if segmenter else []
    if scope.judge_masks:
        rows.append({"method": "Otsu's threshold, no model", "dice": findings.otsu_dice()})
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
        "seconds": round(time.monotonic() - began, 1),
        "note": RESEARCH_USE,
    }
    write_json(plan.folder / "results.json", results)
    write_text(plan.folder / "report.html", write_report(findings, results, journal, plan.device))
    return results


def _classify(
    plan: Plan, journal: Journal, scope: Scope, data: Path, backbones: Sequence[Path], rows: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """Judge the features into `rows`, one a backbone; the classifier's metrics on test, if there are any."""
    if scope.judge_classes:
        for row, backbone in zip(rows, backbones, strict=True):
            row |= _flatten_probe(journal.run("probe", backbone, "--data", data, *_seeded(plan)))
    if not scope.classify:
        return None
    adapter = plan.folder / "cls"
    wanted = ["--backbone", backbones[0], "--data", data, "-o", adapter]
    journal.run("train", "classify", *wanted, *_seeded(plan), output=adapter)
    if not scope.judge_classes:
        return None
    return journal.run("evaluate", adapter, "--data", data, "--split", "test", *_on_device(plan))["metrics"]


def _segment(
    plan: Plan, journal: Journal, scope: Scope, data: Path, backbones: Sequence[Path], rows: list[dict[str, Any]]
) -> Path | None:
    """The segmenter on the first backbone; where test can judge, one on each, and their Dice into `rows`."""
    if not scope.segment:
        return None
    adapters = (plan.folder / "seg", plan.folder / "seg_untrained") if scope.judge_masks else (plan.folder / "seg",)
    for row, backbone, adapter in zip(rows, backbones, adapters, strict=False):
        wanted = ["--backbone", backbone, "--data", data, "-o", adapter]
        journal.run("train", "segment", *wanted, "--config", SEGMENT_CONFIG, *_seeded(plan), output=adapter)
        if scope.judge_masks:
            told = journal.run("evaluate", adapter, "--data", data, "--split", "test", *_on_device(plan))
            row["dice"] = told["metrics"]["dice"]
    return adapters[0]


def show_results(results: dict[str, Any]) -> Any:
    """The table of methods and their results on the test split."""
    from dinomed.apps.output import build_table

    columns, rows = table_of(results)
    title = f"{results['images']:,} images ({results['data']}), test split; {RESEARCH_USE}"
    return build_table(columns, rows, title=title)


def table_of(results: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Column names and rows, with the columns that any method has a value in."""
    known = [key for key in COLUMNS if any(key in row for row in results["results"])]
    rows = [[row["method"], *(row.get(key) for key in known)] for row in results["results"]]
    return ["on the frozen features", *(COLUMNS[key] for key in known)], rows


def _draw_lesions(plan: Plan) -> Path:
    """The synthetic collection of this seed and size; drawn again if it is another one, or was cut short."""
    from dinomed.datasets.synthetic.lesions import write_lesions

    folder, note = plan.folder / "lesions", plan.folder / "lesions.json"
    wanted = {"count": plan.count, "seed": plan.seed}
    if note.exists() and json.loads(note.read_text()) == wanted and (folder / "labels.csv").exists():
        return folder
    if note.exists():
        shutil.rmtree(folder, ignore_errors=True)  # our own, as the note beside it says
    write_json(note, wanted)
    logger.info(f"drawing {plan.count} synthetic lesion pictures into {folder}")
    return write_lesions(folder, count=plan.count, seed=plan.seed)


def _scan_options(plan: Plan, images: Path) -> list[str]:
    if plan.data is None:
        return ["--labels", "labels.csv", "--group", "lesion_id"]
    labels = plan.labels or ("labels.csv" if (images / "labels.csv").is_file() else None)
    options = ["--labels", labels] if labels else []
    options += ["--group", plan.group] if plan.group else []
    options += ["--mask", plan.mask] if plan.mask else []
    return [*options, *(["--seed", str(plan.seed)] if plan.seed else [])]


def _pretrain(plan: Plan, journal: Journal, images: int, data: Path, out: Path) -> dict[str, Any]:
    from dinomed.pretrain.config import PretrainConfig

    overrides = list(plan.overrides)
    config = load_config(PretrainConfig, find_config(CONFIG), overrides)
    if images < config.run.batch_size:  # a small collection of the user's own
        overrides.insert(0, f"run.batch_size={images}")
    if plan.seed:
        overrides.append(f"run.seed={plan.seed}")
    journal.depends_on(to_yaml(load_config(PretrainConfig, find_config(CONFIG), overrides)))
    sets = [word for override in overrides for word in ("--set", override)]
    wanted = ["--data", data, "-o", out, *sets, *_on_device(plan)]
    return journal.run("pretrain", CONFIG, *wanted, output=out, resume=True)


def _on_device(plan: Plan) -> list[str]:
    return ["--device", plan.device] if plan.device != "auto" else []


def _seeded(plan: Plan) -> list[str]:
    return [*(["--seed", str(plan.seed)] if plan.seed else []), *_on_device(plan)]


def _flatten_probe(report: dict[str, Any]) -> dict[str, float]:
    """What `dinomed probe` reports, in the columns of the table."""
    names = ("auroc", "balanced_accuracy")
    return {f"{method}_{name}": report[method][name] for method in ("knn", "logistic") for name in names}
