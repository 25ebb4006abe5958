"""Examination of predictions, evaluations, search results and exports."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinomed.adapters.export.run import REPORT_FILE as EXPORT_FILE
from dinomed.adapters.inference.plan import ROWS_FILE, TABLE_FILE, read_plan
from dinomed.apps.examine.datasets import some
from dinomed.apps.examine.report import ArtefactReport, read_mapping
from dinomed.datasets.manifest import leaves_root
from dinomed.datasets.predictions import PLAN_FILE
from dinomed.errors import DinomedError
from dinomed.io.files import sha256_file


def examine_predictions(folder: Path) -> ArtefactReport:
    """Check that the predictions of a folder are complete."""
    report = ArtefactReport(str(folder), "predictions")
    again = "run the same `dinomed predict` again; it continues"
    plan = report.check(PLAN_FILE, lambda: read_plan(folder), "the plan of the prediction", again)
    if plan is None:
        return report
    report.facts.update(settings=plan.settings, maps=len(plan.masks))
    if not plan.complete:
        report.add(ROWS_FILE, "the prediction was interrupted", "incomplete", again)
        return report
    if not plan.is_of_videos:  # they have a table each, among `masks`
        report.file_exists(folder / TABLE_FILE, "predict again with --overwrite")
    gone = [mask for mask in plan.masks if not (folder / mask).is_file()]
    if gone:
        report.add("maps", f"{len(gone):,} are missing: {some(gone)}", "missing", "predict again with --overwrite")
    elif plan.masks:
        report.add("maps", f"{len(plan.masks):,} files are there")
    return report


def examine_result(folder: Path, kind: str, file: str, command: str) -> ArtefactReport:
    """Read the JSON file of an evaluation or of search results.

    Args:
        folder: output folder.
        kind: evaluation, search results or few-shot results.
        file: name of the JSON file.
        command: command that writes it, for the remedy.
    """
    report = ArtefactReport(str(folder), kind)
    data = report.check(file, lambda: read_mapping(folder / file), "a JSON report", _again(command))
    if data is not None:
        _add_facts(report, data)
    return report


def examine_export(folder: Path) -> ArtefactReport:
    """Verify the files of an export."""
    return verify_export(ArtefactReport(str(folder), "export"), folder)


def verify_export(report: ArtefactReport, folder: Path) -> ArtefactReport:
    """Add the report of an export, and each file that it lists with the comparison of its SHA-256.

    If a file is not good, the parts that could not be read are left out: their remedies are those of a training.
    """
    before = len(report.parts)
    _add_export_files(report, folder)
    if any(part.state != "good" for part in report.parts[before:]):
        report.parts[:before] = [part for part in report.parts[:before] if part.state == "good"]
    return report


def _add_export_files(report: ArtefactReport, folder: Path) -> None:
    remedy = f"copy the folder again, or {_again('export')}"

    def read() -> dict[str, Any]:
        data = read_mapping(folder / EXPORT_FILE)
        files = data.get("files")
        if not isinstance(files, dict) or any(leaves_root(name) or not isinstance(files[name], str) for name in files):
            raise DinomedError(f"{folder / EXPORT_FILE} is damaged: its files are no names with checksums")
        return data

    data = report.check(EXPORT_FILE, read, "a JSON report", remedy)
    if data is None:
        return
    _add_facts(report, data)
    for name, checksum in data["files"].items():
        path = folder / name
        if not path.is_file():
            report.add(name, f"{path} is missing", "missing", remedy)
        elif sha256_file(path) != checksum:
            report.add(name, f"{path} is damaged: its checksum does not match", "damaged", remedy)
        else:
            report.add(name, "its checksum matches")


def _again(command: str) -> str:
    return f"run `dinomed {command}` again with --overwrite"


def _add_facts(report: ArtefactReport, data: Mapping[str, Any]) -> None:
    report.facts.update({name: value for name, value in data.items() if isinstance(value, str | int | float | bool)})
