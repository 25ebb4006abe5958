"""The notebooks of the tutorials: small, without outputs, and their code runs from the first cell to the last."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = ROOT / "docs" / "tutorials"
RUN = """
import json, sys
names = {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
"""
"""Runs the code of a notebook without a kernel; as in one, the main module is no file."""
WRITTEN = {
    "lesions": ["runs/ssl", "runs/cls_report/report.html", "predicted/index.html", "runs/index", "pca.png"],
    "polyps": [
        "published/config.json",
        "runs/unet/adapter.yaml",
        "runs/report_unet/report.html",
        "predicted/index.html",
    ],
    "own_pool": ["runs/curated.html", "runs/ssl/config.yaml"],
}


def run_notebook(name: str, folder: Path) -> str:
    """Run a notebook in a folder, without a network, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "DINOMED_LOG": "warning"}
    command = [sys.executable, "-c", RUN, str(TUTORIALS / f"{name}.ipynb")]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stderr[-3000:]
    assert [path for path in WRITTEN[name] if not (folder / path).exists()] == []
    return result.stdout


def test_all_tutorials_are_run() -> None:
    assert {path.stem for path in TUTORIALS.glob("*.ipynb")} == WRITTEN.keys()


@pytest.mark.parametrize("name", WRITTEN)
def test_a_notebook_has_a_title_no_outputs_and_few_cells(name: str) -> None:
    notebook = json.loads((TUTORIALS / f"{name}.ipynb").read_text(encoding="utf-8"))
    cells = notebook["cells"]
    assert notebook["nbformat"] == 4
    assert cells[0]["cell_type"] == "markdown"
    assert cells[0]["source"][0].startswith("# ")
    assert 8 < len(cells) < 30
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in code] == [[]] * len(code)
    assert {cell["execution_count"] for cell in code} == {None}


@pytest.mark.long
def test_lesions_are_scanned_learned_measured_and_searched(tmp_path: Path) -> None:
    printed = run_notebook("lesions", tmp_path)
    assert "90 images; ['irregular', 'regular', 'vascular']" in printed
    assert re.search(r"balanced accuracy 0\.\d\d, 95% interval 0\.\d\d to [01]\.\d\d", printed)
    assert re.search(r"^1 images/SYN_00000_a\.jpg 1\.0$", printed, re.M)  # the image itself is in the index


@pytest.mark.long
def test_polyps_are_segmented_on_a_backbone_in_the_format_of_timm(tmp_path: Path) -> None:
    printed = run_notebook("polyps", tmp_path)
    linear, unet = (float(re.search(rf"^{name} Dice ([\d.]+)$", printed, re.M)[1]) for name in ("linear", "unet"))
    assert unet > linear


@pytest.mark.long
def test_planted_test_images_are_in_the_raw_pool_and_not_in_the_curated_one(tmp_path: Path) -> None:
    assert "test images in the raw pool: 3, in the curated one: 0" in run_notebook("own_pool", tmp_path)
