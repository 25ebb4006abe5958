"""Fixtures for all tests: the real images (skipped where they are absent) and one thread for torch."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; set DINOMED_TEST_DATA to it (default: ../shared/data beside the project)."""
    folder = Path(os.environ.get("DINOMED_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "dermoscopy" / "labels.csv").is_file():
        pytest.skip(f"no real images at {folder}; set DINOMED_TEST_DATA to the folder that holds them")
    return folder
