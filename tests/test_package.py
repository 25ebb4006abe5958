"""The package: complete, in layers, with the requirements that its code needs."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import dinomed

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# layer -> what it may import of dinomed; the core may import none of the others
LAYERS = {
    "dinomed": set(),
    "pretrain": {"pretrain"},
    "adapters": {"adapters"},
    "apps": {"pretrain", "adapters", "apps", "configs"},
    "configs": set(),
}


NOT_IN_THE_TESTED_SET = {
    "umap-learn": "umap",
    "mlflow-skinny": "mlflow",
    "sqlalchemy": "sqlalchemy",
    "alembic": "alembic",
    "wandb": "wandb",
}
"""Distribution of an optional extra -> its module: the tests do not install it, so constraints.txt has no version."""
PUBLIC_API = ROOT / "dinomed" / "__init__.py"
ENTRY_POINT = ROOT / "dinomed" / "__main__.py"


def sources(folder: str) -> Iterator[Path]:
    """The Python files of one of the top-level folders, without what links from it into another."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        if path.resolve() == ROOT.resolve() / path.relative_to(ROOT):
            yield path


def imported(path: Path, inside: bool = True) -> Iterator[str]:
    """Every module that a file imports, at its top or (unless not `inside`) in a function or a condition."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_those_below_it(layer: str) -> None:
    unprefixed = {"pretrain", "adapters", "apps", "configs"}
    for path in sources(layer):
        for module in imported(path):
            if path in (PUBLIC_API, ENTRY_POINT) and module.startswith("dinomed.apps."):
                continue
            top, _, submodule = module.partition(".")
            assert top not in unprefixed, f"{path.relative_to(ROOT)}: import dinomed.{top}, not {top}"
            if top == "dinomed":
                wanted = submodule.partition(".")[0]
                assert wanted not in unprefixed - LAYERS[layer], f"{path.relative_to(ROOT)} imports {module}"


def test_the_core_names_the_public_api_for_type_checkers_only() -> None:
    assert not any(module.startswith("dinomed") for module in imported(PUBLIC_API, inside=False))
    tree = ast.parse(PUBLIC_API.read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(checked.test) == "TYPE_CHECKING"
    named = {
        alias.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert named == {name: f"dinomed.apps.{module}" for name, module in dinomed._MODULES.items()}
    assert sorted(dinomed.__all__) == sorted(["__version__", *named])


def test_the_walk_over_imports_sees_what_it_should() -> None:
    assert "dinomed.errors" in set(imported(ROOT / "apps" / "cli.py"))
    assert len(list(sources("dinomed"))) > 10
    assert not any("pretrain" in path.parts for path in sources("dinomed"))  # the links are not followed


def test_pyproject_lists_every_package() -> None:
    folders = PYPROJECT["tool"]["setuptools"]["package-dir"]
    packages = set()
    for name, folder in folders.items():
        for path in sources(folder):
            parts = path.parent.relative_to(ROOT / folder).parts
            packages.add(".".join((name, *parts)))
    assert packages == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_every_package_has_an_init() -> None:
    folders = PYPROJECT["tool"]["setuptools"]["package-dir"]
    for package in PYPROJECT["tool"]["setuptools"]["packages"]:
        base = max((name for name in folders if package == name or package.startswith(name + ".")), key=len)
        folder = ROOT / folders[base] / package.removeprefix(base).strip(".").replace(".", "/")
        assert (folder / "__init__.py").is_file(), folder


@pytest.mark.skipif((ROOT / "PKG-INFO").exists(), reason="a source distribution has no links; it is installed instead")
def test_the_links_point_into_the_tree() -> None:
    for name in ("pretrain", "adapters", "apps", "configs"):
        link = ROOT / "dinomed" / name
        assert link.is_symlink()
        assert link.readlink() == Path("..") / name


def test_constraints_hold_names_and_versions_only() -> None:
    from packaging.requirements import Requirement

    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pins = {Requirement(line).name.lower().replace("_", "-"): Requirement(line) for line in lines}
    assert all(pin.url is None and str(pin.specifier).startswith("==") for pin in pins.values())
    project = PYPROJECT["project"]
    for text in [
        *project["dependencies"],
        *(text for requirements in project["optional-dependencies"].values() for text in requirements),
    ]:
        wanted = Requirement(text)
        if wanted.name in NOT_IN_THE_TESTED_SET:
            continue
        if wanted.name == "dinomed" or text in project["optional-dependencies"]["dev"]:  # its own extras; tools
            continue
        pin = pins[wanted.name.lower().replace("_", "-")]
        version = next(iter(pin.specifier)).version
        assert wanted.specifier.contains(version), f"{pin} is outside {wanted}"


def test_what_the_code_imports_is_declared() -> None:
    from packaging.requirements import Requirement

    project = PYPROJECT["project"]
    requirement_texts = [
        *project["dependencies"],
        *(text for requirements in project["optional-dependencies"].values() for text in requirements),
    ]
    declared = {Requirement(text).name.lower().replace("_", "-") for text in requirement_texts}
    owners = {module: [name] for name, module in NOT_IN_THE_TESTED_SET.items()} | dict(packages_distributions())
    used = {module.partition(".")[0] for layer in LAYERS for path in sources(layer) for module in imported(path)}
    third_party = used - set(sys.stdlib_module_names) - {"dinomed"}
    assert {"torch", "cv2", "yaml"} <= third_party
    for module in sorted(third_party):
        names = {name.lower().replace("_", "-") for name in owners.get(module, [module])}
        assert names & declared, f"{module} is imported, and pyproject.toml asks for none of {sorted(names)}"


HEAVY = {"torch", "torchvision", "cv2", "faiss", "monai", "sklearn", "albumentations"}


@pytest.mark.parametrize(
    "module",
    [
        "pretrain.curation.config",
        "adapters.catalogue",
        "adapters.fitting.config",
        "adapters.tasks.classify.config",
        "adapters.tasks.segment.config",
        "adapters.tasks.depth.config",
    ],
)
def test_configs_are_loaded_without_heavy_libraries(module: str) -> None:
    code = f"import sys, dinomed.{module}; print(*sorted({HEAVY} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []
