"""Installation by the Makefile into a new environment, without network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("dinomed", "pretrain", "adapters", "apps", "configs")
FILES = ("Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
IMPORTS = (
    "import dinomed, dinomed.adapters, dinomed.pretrain; dinomed.scan; "
    "print(dinomed.__file__, dinomed.adapters.__file__, dinomed.pretrain.__file__)"
)


def run(command: list[str | Path], folder: Path, **variables: str) -> str:
    """Run a command in `folder`, and return its standard output."""
    others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=others | variables, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.skipif((ROOT / "PKG-INFO").exists(), reason="a source distribution has no links")
def test_a_clone_named_like_the_package_is_imported_from_the_folder_that_holds_it(tmp_path: Path) -> None:
    setuptools = Path(pytest.importorskip("setuptools", minversion="77").__file__).parent
    clone, environment, tools = tmp_path / "dinomed", tmp_path / "environment", tmp_path / "tools"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        shutil.copytree(ROOT / name, clone / name, symlinks=True, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, clone)
    tools.mkdir()
    (tools / "setuptools").symlink_to(setuptools)  # nothing else of this environment: pip would find dinomed in it

    run([sys.executable, "-m", "venv", environment], tmp_path)
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PYTHONPATH": str(tools)}
    run(["make", "install", f"VENV={environment}"], clone, **offline)

    libraries = {"PYTHONPATH": str(setuptools.parent)}
    for folder in (tmp_path, clone, clone / "dinomed" / "io"):
        imported = run([environment / "bin" / "python", "-c", IMPORTS], folder, **libraries).split()
        assert imported == [str(clone / "dinomed" / name / "__init__.py") for name in ("", "adapters", "pretrain")]
    assert "pretrain" in run([environment / "bin" / "dinomed", "--help"], tmp_path, **libraries)
