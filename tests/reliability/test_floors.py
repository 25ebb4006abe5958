"""`.ci/floors.py`: a package index that cannot be reached is not mistaken for a fault of dinomed, nor the reverse."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "floors.py"
FLOORS = SimpleNamespace(**runpy.run_path(str(SCRIPT)))

NO_SOLUTION = "error: No solution found when resolving dependencies\n  cause: Because "
# lines that uv 0.13 writes
OF_THE_INDEX = {
    "no name": "error: Request failed after 3 retries in 10.1s\n  cause: Failed to fetch: https://host.invalid/simple/x/",
    "503": "error: Request failed after 3 retries in 7.7s\n  cause: HTTP status server error (503 Service Unavailable)",
    "a file is gone": "error: Failed to fetch: http://host/files/x-1.0-py3-none-any.whl",
    "an empty index": f"{NO_SOLUTION}numpy was not found in the package registry and you require numpy>=99",
}
OF_THE_PROJECT = {
    "no version": f"{NO_SOLUTION}only numpy<=2.5.5 is available and you require numpy>=99",
    "build": "error: Failed to build `dinomed @ file:///project`\n  cause: The build backend returned an error",
    "anything else": "error: an error of another kind",
}


@pytest.mark.parametrize("kind", OF_THE_INDEX)
def test_failures_of_the_index(kind: str) -> None:
    assert FLOORS.is_index_failure(OF_THE_INDEX[kind])


@pytest.mark.parametrize("kind", OF_THE_PROJECT)
def test_failures_of_the_project(kind: str) -> None:
    assert not FLOORS.is_index_failure(OF_THE_PROJECT[kind])


def test_only_packages_that_the_project_does_not_name_have_tested_versions() -> None:
    project = (
        '[project]\ndependencies = ["torch>=2.11,<3", "Some_Name>=1"]\n[project.optional-dependencies]\na = ["b[c]>=2"]'
    )
    constraints = "# comment\ntorch==2.15.0\nsome-name==3\nb==4\njinja2==3.1.6\n"
    assert FLOORS.other_versions(project, constraints) == ["jinja2==3.1.6"]


@pytest.mark.parametrize(("words", "code"), [([], 75), (["--skip-without-index"], 0)])
def test_without_an_index_nothing_is_tested_and_that_is_said(words: list[str], code: int, tmp_path: Path) -> None:
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    command = [sys.executable, SCRIPT, "--folder", tmp_path / "floors", "--attempts", "1", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert "NOT TESTED: the lowest versions of pyproject.toml, because no package index could be reached" in done.stdout
    assert "passed" not in done.stdout
