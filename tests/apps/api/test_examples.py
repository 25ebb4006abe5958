"""The examples in the docstrings of the Python API and in docs/python.md run, and give what they show."""

import doctest
from pathlib import Path

import numpy as np
import pytest

import dinomed

ROOT = Path(__file__).resolve().parents[3]
FUNCTIONS = [name for name in dinomed.__all__ if not name.startswith("_")]


def run_examples(text: str, name: str) -> int:
    """Run the examples of a text and return how many there are; a failure ends the test with doctest's report."""
    test = doctest.DocTestParser().get_doctest(text, {"dinomed": dinomed, "np": np}, name, name, 0)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=report.append)
    if runner.failures:
        pytest.fail("".join(report))
    return len(test.examples)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_a_function_runs(name: str, workspace: Path) -> None:
    assert run_examples(getattr(dinomed, name).__doc__ or "", name) > 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_has_all_sections(name: str) -> None:
    text = getattr(dinomed, name).__doc__ or ""
    arguments = [] if name == "list_models" else ["Args:", "Raises:"]
    for section in [*arguments, "Returns:", "Example:"]:
        assert section in text, f"{name} has no section {section}"
