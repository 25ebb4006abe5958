"""The scripts of `benchmarks/`: their paths, and the scripts as modules that can import their neighbours."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def script_path() -> Callable[[str], Path]:
    """``script_path("gpu")``: the file of the script of that name."""

    def find(name: str) -> Path:
        (path,) = FOLDER.glob(f"*/{name}.py")
        return path

    return find


@pytest.fixture(scope="session")
def script(script_path: Callable[[str], Path]) -> Iterator[Callable[[str], ModuleType]]:
    """``script("gpu")``: the module of that name; its folder comes first on the module path, as when it is run."""
    modules_before, path_before = {*sys.modules}, [*sys.path]

    def load(name: str) -> ModuleType:
        folder = str(script_path(name).parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        return importlib.import_module(name)

    yield load
    sys.path[:] = path_before
    for name in {*sys.modules} - modules_before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(FOLDER)):
            del sys.modules[name]
