"""Fixtures: the corpus of damaged and hostile images, and the growth of memory."""

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def corpus() -> SimpleNamespace:
    """The functions of `tests/reliability/corpus/images.py`."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "corpus" / "images.py")))


@pytest.fixture
def memory_growth() -> Callable[[], int]:
    """Return a function that gives by how many KiB the memory has grown at most since the fixture was made.

    The largest memory of the process is forgotten first: earlier tests may have needed more.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not forget the largest memory of a process")

    def largest() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    before = largest()
    return lambda: largest() - before
