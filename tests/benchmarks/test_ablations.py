"""The ablation benchmark: runs, continuing after an interruption, and tables."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dinomed.datasets.manifest import write_manifest
from dinomed.datasets.scan.scan import scan
from dinomed.datasets.synthetic.lesions import write_lesions

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough images for a batch of 64."""
    folder = tmp_path_factory.mktemp("hundred")
    write_lesions(folder / "lesions", count=110, size=(36, 48), broken=0)
    write_manifest(scan(folder / "lesions", labels="labels.csv", group="lesion_id").manifest, folder / "m.parquet")
    return folder / "m.parquet"


@pytest.fixture
def run_ablations(script_path: Callable[[str], Path]) -> Run:
    """Run the script on 64 images with more arguments."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, script_path("ablations"), *map(str, arguments), "--images", "64", "--device", "cpu"],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return run


@pytest.mark.long
def test_each_config_has_a_row_and_no_run_is_repeated(
    run_ablations: Run, hundred: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r"
    common = ("--data", hundred, "-o", out, "--from", tiny_backbone, "--only", "base", "continued")
    first = run_ablations(*common)
    assert first.returncode == 0, first.stderr
    rows = json.loads((out / "ablations.json").read_text())
    assert [len(rows[name]) for name in ("base", "continued")] == [1, 1]
    assert 0 < rows["base"][0]["knn_auroc"] < 1
    assert first.stdout.count("\n") == 4  # head, rule, two rows
    log = out / "continued_64_0" / "log.jsonl"
    before = log.stat().st_mtime_ns
    assert run_ablations(*common).stdout == first.stdout
    assert log.stat().st_mtime_ns == before


@pytest.mark.long
def test_configs_initialised_from_weights_need_them(run_ablations: Run, lesion_manifest: Path, tmp_path: Path) -> None:
    result = run_ablations("--data", lesion_manifest, "-o", tmp_path, "--only", "continued")
    assert result.returncode == 2
    assert "--from" in result.stderr.splitlines()[-1]
