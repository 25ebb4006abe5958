"""Examination of predictions, evaluations, search results and exports."""

from pathlib import Path

from dinomed.adapters.inference.plan import ROWS_FILE, TABLE_FILE, read_plan
from dinomed.apps.examine.datasets import some
from dinomed.apps.examine.report import ArtefactReport
from dinomed.datasets.scan.predictions import PLAN_FILE
from dinomed.errors import DinomedError
from dinomed.io.files import read_json


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
    """Read the JSON file of an evaluation, a search or an export.

    Args:
        folder: output folder.
        kind: evaluation, search results or export.
        file: name of the JSON file.
        command: command that writes it, for the remedy.
    """
    report = ArtefactReport(str(folder), kind)

    def read() -> dict[str, object]:
        data = read_json(folder / file)
        if not isinstance(data, dict):
            raise DinomedError(f"{folder / file} is damaged: it is no mapping")
        return data

    data = report.check(file, read, "a JSON report", f"run `dinomed {command}` again with --overwrite")
    if data is not None:
        plain = {name: value for name, value in data.items() if isinstance(value, str | int | float | bool)}
        report.facts.update(plain)
    return report
