"""Fixture: the corpus of damaged and hostile images."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def corpus() -> SimpleNamespace:
    """The functions of `tests/reliability/corpus/images.py`."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "corpus" / "images.py")))
