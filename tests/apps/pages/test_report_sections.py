"""Sections of the evaluation page: verdict, contents, Dice by size and threshold, confusion cells and their cases."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from dinomed.adapters.tasks.segment.evaluated import EvaluatedMasks
from dinomed.apps.pages.plots import matrix
from dinomed.apps.pages.sections.confusion import cell_name, error_cells
from dinomed.apps.pages.sections.masks import draw_by_size, draw_histogram
from dinomed.apps.pages.sections.training import FitLogs, build_training_section, read_fit_logs
from dinomed.datasets.manifest import read_manifest
from dinomed.html.page import heading, paragraph, with_contents


def report_of(run, user_folder: Path, adapter: str, out: Path) -> tuple[str, dict]:
    code, _, err = run("evaluate", user_folder / adapter, "--data", user_folder / "derm.parquet", "-o", out, "--quiet")
    assert code == 0, err
    return (out / "report.html").read_text(encoding="utf-8"), json.loads((out / "metrics.json").read_text())


def test_the_page_of_a_segmenter(user_folder: Path, run, tmp_path: Path) -> None:
    page, report = report_of(run, user_folder, "seg", tmp_path / "seg")
    assert f"Dice: {report['metrics']['dice']:.3f} (95% interval" in page
    assert page.index("verdict") < page.index('<nav class="contents"') < page.index("<h2")
    for link in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{link}"' in page
    curve = report["dice_by_threshold"]
    assert len(curve) == 19
    used = min(curve, key=lambda row: abs(row["threshold"] - report["threshold"]))
    assert used["dice"] == pytest.approx(report["metrics"]["dice"], abs=0.2)  # the grid has steps of 0.05
    sizes = report["dice_by_size"]
    assert sum(row["n"] for row in sizes) == report["metrics"]["n"]
    mean = sum(row["n"] * row["dice"] for row in sizes) / report["metrics"]["n"]
    assert mean == pytest.approx(report["metrics"]["dice"], abs=1e-9)
    for title in ("Lesions", "Dice of the images", "Dice by lesion size", "Dice by threshold", "Next"):
        assert re.search(f"<h2[^>]*>{title}</h2>", page)


def test_each_error_of_a_confusion_matrix_leads_to_its_cases(user_folder: Path, run, tmp_path: Path) -> None:
    page, report = report_of(run, user_folder, "cls", tmp_path / "cls")
    cells = error_cells(report["metrics"]["confusion"])
    assert cells
    for cell in cells:
        assert f'href="#{cell_name(*cell)}"' in page
        section = page.partition(f'<h3 id="{cell_name(*cell)}">')[2].partition("<h")[0]
        count = report["metrics"]["confusion"][cell[0]][cell[1]]
        assert section.count("data:image/jpeg") == min(count, 4)


def test_the_curves_of_a_fit_are_on_its_page(user_folder: Path, run, tmp_path: Path) -> None:
    page, _ = report_of(run, user_folder, "seg", tmp_path / "seg")
    section = page.partition(">Training of the head</h2>")[2].partition("<h2")[0]
    log = read_fit_logs(user_folder / "seg").first
    assert f"{len(log)} epochs" in section
    assert re.findall("<figcaption>([^<]*)", section) == ["training loss", "on val: dice"]
    assert f">epoch {len(log)}<" in section


def test_a_damaged_or_missing_log_gives_no_curves(tmp_path: Path) -> None:
    assert read_fit_logs(tmp_path) == FitLogs([], [])
    for text in ("{", "[1]\n", '{"loss": 1}\n'):
        (tmp_path / "log.jsonl").write_text(text)
        assert read_fit_logs(tmp_path) == FitLogs([], [])
    assert build_training_section(FitLogs([{"epoch": 1, "train_loss": 0.5}])) == []  # one epoch is no curve
    rows = [{"epoch": number, "train_loss": 1 / number, "best": None} for number in (1, 2)]
    assert build_training_section(FitLogs(rows))[-1].count("<svg") == 1


def test_the_curves_of_two_trainings_have_their_own_headings(tmp_path: Path) -> None:
    for name, epochs, more in (("log.jsonl", 3, ', "val_dice": 0.5'), ("log_refit.jsonl", 4, "")):
        rows = [f'{{"epoch": {epoch}, "train_loss": {1 / epoch}{more}}}\n' for epoch in range(1, epochs + 1)]
        (tmp_path / name).write_text("".join(rows))
    section = "".join(build_training_section(read_fit_logs(tmp_path)))
    first, second = re.split("<h3[^>]*>", section)[1:]
    assert first.startswith("First training, on train<")
    assert "3 epochs" in first
    assert re.findall("<figcaption>([^<]*)", first) == ["training loss", "on val: dice"]
    assert second.startswith("Second training, on train and val<")
    assert "4 epochs" in second
    assert re.findall("<figcaption>([^<]*)", second) == ["training loss"]


def test_cells_are_linked_only_where_there_are_cases() -> None:
    table = matrix(("a", "b"), [[5, 2], [0, 7]], {cell: cell_name(*cell) for cell in error_cells([[5, 2], [0, 7]])})
    assert re.findall(r'href="#([^"]+)">(\d+)', table) == [("cell-0-1", "2")]


def test_dice_by_size_counts_every_image_once(lesion_manifest: Path) -> None:
    manifest = read_manifest(lesion_manifest).take(list(range(7)))
    shares = np.array([0, 0.1, 0.02, 0.3, 0, 0.04, 0.5])
    dice = np.array([1, 0.5, 0.2, 0.8, 0, 0.3, 0.9])
    masks = EvaluatedMasks(manifest, manifest.units(), {"dice": dice}, lambda rows: {}, target_shares=shares)
    rows = masks.details()["dice_by_size"]
    assert [(row["n"], row["dice"]) for row in rows] == [
        (2, pytest.approx(0.5)), (2, pytest.approx(0.25)), (2, pytest.approx(0.65)), (1, pytest.approx(0.9)),
    ]  # fmt: skip
    assert rows[1]["size"] == "smallest third: 2% to 4% of the image"
    assert masks.details()["dice_by_threshold"] is None


def test_the_histogram_counts_the_images() -> None:
    drawn = draw_histogram(np.array([0.0, 0.01, 0.52, 1.0]))
    assert "0.00 to 0.05: 2" in drawn
    assert "0.50 to 0.55: 1" in drawn
    assert "0.95 to 1.00: 1" in drawn
    assert draw_histogram(np.zeros(0)) == ""
    assert draw_by_size(np.array([0.0, 0.1]), np.array([1.0, 0.5])) == ""  # one image with a lesion
    assert draw_by_size(np.array([0.01, 0.1]), np.array([0.2, 0.5])).count("h0") == 2  # dots


def test_the_contents_lead_to_the_headings() -> None:
    parts = with_contents([paragraph("first"), heading("A & B"), paragraph("<h2>no"), heading("C")])
    assert parts[0] == paragraph("first")
    assert parts[1].count("<a ") == 2
    assert parts[2] == '<h2 id="part-1">A &amp; B</h2>'
    assert parts[-1] == '<h2 id="part-2">C</h2>'
