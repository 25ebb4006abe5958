"""Every benchmark starts, and its help has the command that runs it."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(path for path in (ROOT / "benchmarks").glob("*/*.py") if "argparse" in path.read_text())


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_benchmark_prints_its_command_with_help(
    script: Callable[[str], ModuleType], path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    for package in ("faiss", "segmentation_models_pytorch", "monai"):
        if f"import {package}" in path.read_text() or f"from {package}" in path.read_text():
            pytest.importorskip(package)
    benchmark = script(path.stem)
    with pytest.raises(SystemExit) as stopped:
        benchmark.main()
    assert stopped.value.code == 0
    assert f"python {path.relative_to(ROOT)}" in capsys.readouterr().out


def test_benchmarks_that_print_help_are_more_than_a_few() -> None:
    assert len(COMMANDS) > 12
    assert ROOT / "benchmarks" / "pretrain" / "gpu.py" in COMMANDS


def test_the_names_of_benchmarks_differ() -> None:
    names = [path.stem for path in (ROOT / "benchmarks").glob("*/*.py")]
    assert len(names) == len({*names})
