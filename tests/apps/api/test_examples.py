"""The examples in docstrings and in docs/python.md run, and give what they show."""

import doctest
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dinomed

ROOT = Path(__file__).resolve().parents[3]
FUNCTIONS = [name for name in dinomed.__all__ if not name.startswith("_")]


def modules_with_examples() -> list[str]:
    paths = [
        path for part in ("adapters", "apps", "dinomed", "pretrain") for path in sorted((ROOT / part).rglob("*.py"))
    ]
    names = [path.relative_to(ROOT).with_suffix("").parts for path in paths if ">>> " in path.read_text("utf-8")]
    return [".".join(name if name[0] == "dinomed" else ("dinomed", *name)) for name in names]


def run_examples(text: str, name: str, names: dict[str, Any] | None = None) -> int:
    """Run the examples of a text and return how many there are; a failure ends the test with doctest's report."""
    test = doctest.DocTestParser().get_doctest(text, names or {"dinomed": dinomed, "np": np}, name, name, 0)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=report.append)
    if runner.failures:
        pytest.fail("".join(report))
    return len(test.examples)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_a_function_runs(name: str, workspace: Path) -> None:
    assert run_examples(dinomed.__getattr__(name).__doc__ or "", name) > 0


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_run(name: str) -> None:
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder().find(module, extraglobs={"np": np, "torch": torch}):
        function = test.name.rpartition(".")[2]
        if function not in FUNCTIONS:  # those of the Python API have a test of their own, with its files
            assert test.docstring is not None
            run_examples(test.docstring, test.name, test.globs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_has_all_sections(name: str) -> None:
    text = dinomed.__getattr__(name).__doc__ or ""
    arguments = [] if name in ("list_models", "doctor") else ["Args:", "Raises:"]
    for section in [*arguments, "Returns:", "Example:"]:
        assert section in text, f"{name} has no section {section}"


@pytest.mark.long
def test_the_examples_of_the_python_page_run(workspace: Path) -> None:
    assert run_examples((ROOT / "docs" / "python.md").read_text(), "python.md") > 10


def test_readme_commands_exist() -> None:
    from typer.main import get_command

    from dinomed.apps.cli import app

    group = get_command(app)
    blocks = (ROOT / "README.md").read_text().split("```")[1::2]
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("dinomed ")]
    assert len(lines) > 10
    for line in lines:
        words = line.split("#")[0].split()[1:]
        command = group.get_command(None, words[0])  # type: ignore[attr-defined, arg-type]
        if hasattr(command, "list_commands"):
            command = command.get_command(None, words[1])
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, line
