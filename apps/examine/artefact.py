"""Examination of an artefact of any kind."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dinomed.adapters.bundle import RECORD_FILE as ADAPTER_RECORD
from dinomed.adapters.bundle import WEIGHTS_FILE as ADAPTER_WEIGHTS
from dinomed.adapters.inference.ensemble.record import ENSEMBLE_FILE
from dinomed.adapters.retrieval.index import INDEX_FILE
from dinomed.adapters.retrieval.index import RECORD_FILE as INDEX_RECORD
from dinomed.apps.examine.datasets import examine_cache, examine_manifest, examine_table, find_cache
from dinomed.apps.examine.models import examine_adapter, examine_backbone, examine_ensemble, examine_index, examine_run
from dinomed.apps.examine.report import ArtefactReport
from dinomed.apps.examine.results import EXPORT_FILE, examine_export, examine_predictions, examine_result, verify_export
from dinomed.backbones.load import WEIGHTS_FILE as BACKBONE_WEIGHTS
from dinomed.backbones.weights import FOLDER_FILES
from dinomed.backbones.weights import INDEX_FILE as SHARD_LIST
from dinomed.datasets.manifest import is_manifest
from dinomed.datasets.predictions import PLAN_FILE
from dinomed.errors import DinomedError, UsageError
from dinomed.io.output_folder import STAGE, check_free
from dinomed.pretrain.run_folder import CHECKPOINTS, RECORD_FILE

RESULTS = {
    "metrics.json": ("evaluation", "evaluate"),
    "few_shot.json": ("few-shot results", "probe"),
    "results.json": ("search results", "search"),
}
_INSIDE = (ADAPTER_WEIGHTS, ENSEMBLE_FILE, INDEX_FILE, BACKBONE_WEIGHTS, PLAN_FILE, EXPORT_FILE, *RESULTS)


def examine(path: Path) -> ArtefactReport:
    """Find the kind of an artefact, and examine it; see `dinomed.doctor`.

    Raises:
        UsageError: `path` does not exist, or is no artefact of dinomed.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist; give a manifest, or a folder that dinomed wrote")
    if path.is_file() and path.name in _INSIDE:
        path = path.parent
    report = _examine_file(path) if path.is_file() else _examine_folder(path)
    if path.is_dir():
        try:
            check_free(path)
        except DinomedError as error:
            report.add("lock", str(error), "incomplete", "wait until the other process has ended")
    return report


def _examine_file(path: Path) -> ArtefactReport:
    if _is_feature_table(path):
        return examine_table(path)
    if is_manifest(path):
        return examine_manifest(path)
    raise UsageError(f"{path} is no manifest and no table of features; give a .parquet or .csv file, or a folder")


def _is_feature_table(path: Path) -> bool:
    try:
        return "feature" in pq.read_schema(path).names
    except (pa.ArrowException, OSError):
        return False


def _examine_folder(folder: Path) -> ArtefactReport:
    def holds(*names: str) -> bool:
        return any((folder / name).exists() for name in names)

    if holds(RECORD_FILE, CHECKPOINTS):
        return examine_run(folder)
    if holds(ENSEMBLE_FILE, ADAPTER_WEIGHTS, ADAPTER_RECORD):
        report = examine_ensemble(folder) if holds(ENSEMBLE_FILE) else examine_adapter(folder)
        return verify_export(report, folder) if holds(EXPORT_FILE) else report
    if holds(INDEX_FILE, INDEX_RECORD):
        return examine_index(folder)
    if holds(PLAN_FILE):
        return examine_predictions(folder)
    if holds(EXPORT_FILE):
        return examine_export(folder)
    for file, (kind, command) in RESULTS.items():
        if holds(file):
            return examine_result(folder, kind, file, command)
    if holds(*FOLDER_FILES, SHARD_LIST):
        return examine_backbone(folder)
    if holds(STAGE):
        report = ArtefactReport(str(folder), "unfinished output")
        report.add(STAGE, "the command that writes this folder was interrupted", "incomplete", "run it again")
        return report
    if find_cache(folder):
        return examine_cache(folder)
    raise UsageError(f"{folder} holds nothing that dinomed wrote; give a manifest, or a folder that a command wrote")
