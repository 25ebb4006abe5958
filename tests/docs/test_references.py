"""The references of commands and settings are complete: made from the code, without the tools that build the site."""

import importlib.util
import json
import re
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import create_autospec

import pytest

import dinomed
from dinomed.adapters.inference.folder import table_columns, with_abstained
from dinomed.adapters.task import BUILT_IN_TASKS, find_task
from dinomed.adapters.tasks.classify.predict import EnsembleClassifier
from dinomed.adapters.tasks.segment.mask_schema import MaskSchema
from dinomed.adapters.writer import PredictionWriter
from dinomed.datasets.manifest import build_manifest
from dinomed.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]


def load_hook(name: str) -> ModuleType:
    """Load a file of docs/hooks/ under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"site_hook_{name}", ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_commands_has_every_command_with_its_options() -> None:
    sections = dict(re.findall(r"^## dinomed ?(.*)\n([^\0]*?)(?=^## |\Z)", load_hook("commands").commands_page(), re.M))
    recorded = json.loads((ROOT / "tests" / "golden" / "cli_options.json").read_text(encoding="utf-8"))
    assert sections.keys() == recorded.keys()
    for command, options in recorded.items():
        shown = {
            word
            for row in re.findall(r"^\| (`-.*?`) \|", sections[command], re.M)
            for word in re.findall("`(.+?)`", row)
        }
        assert {option for option in options if option.startswith("-")} - shown == set(), command


def test_every_row_of_the_page_of_commands_has_a_meaning() -> None:
    rows = re.findall(r"^\| `.*", load_hook("commands").commands_page(), re.M)
    assert len(rows) > 300
    assert [
        row for row in rows if len(re.split(r"(?<!\\)\|", row)) != 6 or not re.split(r"(?<!\\)\|", row)[4].strip()
    ] == []


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ("pretrain", "| `optimizer.layer_decay` | number > 0 ≤ 1 | `1.0` | factor on the learning rate"),
        ("pretrain", "| `backbone.drop_path` | number ≥ 0 < 1 | `0.3` |"),  # the default of the job, not of the class
        ("pretrain", '| `run.parallel` | `"replicate"` or `"shard"` | `"replicate"` |'),
        ("curate", "| `descriptor.source.weights` | string | required | file of the network |"),
        ("classify", "| `head.k` | integer ≥ 1 or null | `null` | neighbours that vote"),
        ("segment", '| `augment.preset` | `"none"` or `"auto"` or '),
        ("depth", "| `fit.epochs` | integer ≥ 1 | `20` |"),  # the default of the task
    ],
)
def test_a_setting_has_its_name_type_default_and_meaning(job: str, expected: str) -> None:
    assert expected in load_hook("settings").settings_page(job)


@pytest.mark.parametrize("job", ["pretrain", "curate", "audit", "classify", "segment", "depth"])
def test_the_page_of_a_job_has_all_its_settings(job: str) -> None:
    def leaves(values: dict, prefix: str = "") -> set[str]:
        names = {f"{prefix}{name}" for name in values}
        inner = (leaves(value, f"{prefix}{name}.") for name, value in values.items() if isinstance(value, dict))
        return names.union(*inner)

    page = load_hook("settings").settings_page(job)
    names = leaves(dinomed.resolve_config(job))
    assert len(names) > 10
    assert names - set(re.findall(r"^\| `([\w.]+)` \|", page, re.M)) == set()
    assert re.findall(r"^\| `[^|]*\| *\|.*|.*\|\s*\|$", page, re.M) == []  # no empty cell


def github_anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", line) for line in re.findall(r"^#+ +(.*?) *$", text, re.M))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_anchor_of_a_link_exists_on_github_too() -> None:
    pages = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
    links = [
        (page, match[1], match[2])
        for page in pages
        for match in re.finditer(r"\]\(([\w./-]*\.md)?#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 40
    missing = [
        f"{page.name}: {target or ''}#{anchor}"
        for page, target, anchor in links
        if anchor not in github_anchors(page.parent / target if target else page)
    ]
    assert missing == []


def test_the_table_of_predictions_has_every_column_that_is_written(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    section = page.partition("## Columns of predictions.csv\n")[2].partition("\n## ")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", section, re.M) for name in re.findall("`(.+?)`", row)}
    written = set[str]()
    for task in BUILT_IN_TASKS:
        writer = writer_of_all_columns(task, tmp_path)
        written.update(with_abstained(table_columns(writer), [], [])[0])
    assert named == written - {"nevus"}


def writer_of_all_columns(task: str, folder: Path) -> PredictionWriter:
    """Return a writer of a task that writes all columns it has: of an ensemble with prediction sets, and of a DICOM
    file."""
    (folder / "a.dcm").write_bytes(bytes(128) + b"DICM")
    manifest = build_manifest({"image": ["a.dcm"], "format": ["DICOM"]}, folder)
    model = SimpleNamespace(
        threshold=0.5, file_scale=1.0, schema=MaskSchema("binary", ("lesion",), (1,)), metadata={"weights_sha256": ""}
    )
    if task == "classify":
        model = create_autospec(EnsembleClassifier, instance=True, classes=["nevus"], has_sets=True)
    writer = find_task(task).build_writer(model, ["a.dcm"])
    writer.add_areas(manifest)
    with suppress(UsageError):  # a task without masks
        writer.add_dicom_seg(manifest, keep_ids=False)
    return writer
