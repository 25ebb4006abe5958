"""The shape of the source tree: no import circle, folders of 3 to 12 files, files of at most 350 lines."""

import ast
import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("dinomed", "pretrain", "adapters", "apps")
MAX_FILES, MIN_FILES, MAX_LINES = 12, 3, 350
# reason -> folders whose number of files is decided by something else
COUNT_EXCEPTIONS = {"one file a command": {"dinomed.apps.commands"}}


def source_files() -> dict[str, Path]:
    """Module name -> file, for the four layers; the links inside `dinomed/` are not followed."""
    files = {}
    for layer in LAYERS:
        for path in sorted((ROOT / layer).rglob("*.py")):
            relative = path.relative_to(ROOT)
            if path.resolve() != ROOT.resolve() / relative:
                continue
            parts = relative.with_suffix("").parts
            parts = parts if layer == "dinomed" else ("dinomed", *parts)
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


FILES = source_files()
PACKAGES = sorted(name for name, path in FILES.items() if path.name == "__init__.py")


def imported_modules(path: Path) -> Iterator[str]:
    """Every module of dinomed that a file imports, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom) and node.module in FILES:
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (module if module in FILES else node.module for module in modules)


@functools.cache  # not at import: parsing all files takes seconds, and every process of a test run collects this file
def imports() -> dict[str, set[str]]:
    """Every module -> the modules of dinomed that it imports."""
    return {name: set(imported_modules(path)) - {name} for name, path in FILES.items() if name != "dinomed"}


def graph_of(package: str) -> dict[str, set[str]]:
    """The import graph among the direct children of a package: its files, and its folders as one node each."""

    def child(module: str) -> str | None:
        if not module.startswith(package + "."):
            return None
        name = module[len(package) + 1 :].partition(".")[0]
        return None if package == "dinomed" and name in LAYERS else name

    graph: dict[str, set[str]] = defaultdict(set)
    for module, targets in imports().items():
        source = child(module)
        if source is not None:
            graph[source] |= {name for target in targets if (name := child(target)) not in (None, source)}
    return graph


def find_circle(graph: dict[str, set[str]]) -> list[str] | None:
    """The nodes of one circle, or None."""
    done: set[str] = set()

    def visit(node: str, trail: list[str]) -> list[str] | None:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return None
        for target in sorted(graph.get(node, ())):
            if (circle := visit(target, [*trail, node])) is not None:
                return circle
        done.add(node)
        return None

    for node in sorted(graph):
        if (circle := visit(node, [])) is not None:
            return circle
    return None


def test_a_circle_is_found() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}}) is None


def describe_circle(package: str, circle: list[str]) -> str:
    """The circle, and below it the imports that close it."""
    lines = [
        f"{module} imports {target}"
        for importer, imported in itertools.pairwise(circle)
        for module, targets in imports().items()
        for target in targets
        if (module + ".").startswith(f"{package}.{importer}.") and (target + ".").startswith(f"{package}.{imported}.")
    ]
    return f"{package}: {' -> '.join(circle)}\n" + "\n".join(sorted(lines))


# One test a rule, not one a file: seven hundred tests of a line each take longer than what they check.
def test_no_import_circle_among_the_files_and_folders_of_a_package() -> None:
    circles = {package: find_circle(graph_of(package)) for package in PACKAGES}
    described = [describe_circle(package, circle) for package, circle in circles.items() if circle is not None]
    assert not described, "\n".join(described)


def test_a_folder_holds_3_to_12_files() -> None:
    wrong = []
    for package in {*PACKAGES} - {"dinomed", "dinomed.apps"}.union(*COUNT_EXCEPTIONS.values()):
        folder = FILES[package].parent
        files = sum(path.suffix == ".py" and path.name != "__init__.py" for path in folder.iterdir())
        folders = sum((path / "__init__.py").is_file() for path in folder.iterdir() if path.is_dir())
        if files > MAX_FILES or files + folders < MIN_FILES:
            wrong.append(f"{package} holds {files} files and {folders} folders")
    assert not wrong, "\n".join(wrong)


def test_every_path_on_the_page_of_the_architecture_exists() -> None:
    """A path may leave out its first folders; NAME stands for a name."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w.]+/[\w./]+)`", page))
    tops = [ROOT / top for top in (*LAYERS, "tests", "examples", "docs")]
    files = {f"/{path.relative_to(ROOT).as_posix()}" for top in tops for path in top.rglob("*.*")}
    assert len(named) > 40
    missing = {name for name in named if "NAME" not in name and not any(f"/{name}" in file for file in files)}
    assert not missing


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in (ROOT / "benchmarks").rglob("*.py")}), ids=lambda folder: folder.name
)
def test_a_folder_of_benchmarks_holds_3_to_12_scripts(folder: Path) -> None:
    assert folder.parent == ROOT / "benchmarks", "one level of folders, no script beside them"
    assert MIN_FILES <= len(list(folder.glob("*.py"))) <= MAX_FILES


@pytest.mark.parametrize("folder", ["", "tests", "benchmarks", "examples"])
def test_a_file_has_at_most_350_lines(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py")) if folder else list(FILES.values())
    assert files
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not {name: length for name, length in lengths.items() if length > MAX_LINES}
