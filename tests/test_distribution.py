"""Wheel and source distribution: complete, without foreign files, and working outside the checkout."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("dinomed", "pretrain", "adapters", "apps", "configs")
FOLDERS = (*PACKAGES, ".ci", "benchmarks", "docs", "examples", "tests")
NOT_SOURCES = re.compile(r"(^|/)(__pycache__|node_modules|[^/]*\.egg-info|\.[a-z]+_cache|\.hypothesis)(/|$)|\.pyc$")
FOREIGN = ("runs/private.png", "dinomed/io/__pycache__/a.pyc", "tests/__pycache__/b.pyc", "apps/demos/static/c.pyc")
"""Files of a checkout that must be in neither archive."""
OWN_TESTS = (
    "tests/test_origin.py", "tests/test_config.py", "tests/io", "tests/layers", "tests/metrics", "tests/html",
    "tests/images/test_arrays.py", "tests/datasets/test_splits.py", "tests/apps/test_examples.py",
    "tests/pretrain/optim", "tests/pretrain/test_settings.py",
)  # fmt: skip
"""Fast tests of the source distribution."""


def source_files() -> set[str]:
    """Return the files of the checkout that are sources, relative to it; without links."""
    paths = [path for folder in FOLDERS for path in walk(ROOT / folder)]
    return {name for name in (path.relative_to(ROOT).as_posix() for path in paths) if not NOT_SOURCES.search(name)}


def walk(folder: Path) -> list[Path]:
    return [
        Path(place) / name
        for place, _, names in os.walk(folder)  # does not follow links to folders
        for name in names
    ]


def build(folder: Path, out: Path, kind: str) -> Path:
    """Build an sdist or a wheel of `folder` without network and without an environment of its own."""
    code = f"import setuptools.build_meta as b; print('built', b.build_{kind}({str(out)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300, env=clean_environment()
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out / re.findall(r"^built (.+)$", done.stdout, re.MULTILINE)[-1]


def clean_environment(**variables: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of a checkout that also holds files of a user."""
    pytest.importorskip("setuptools", minversion="77")
    place = tmp_path_factory.mktemp("sdist")
    checkout = place / "checkout"
    checkout.mkdir()
    for folder in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", "node_modules", "*.egg-info", ".*_cache", ".hypothesis")
        shutil.copytree(ROOT / folder, checkout / folder, symlinks=True, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, checkout)
    for name in FOREIGN:
        (checkout / name).parent.mkdir(exist_ok=True, parents=True)
        (checkout / name).write_bytes(b"private")
    return build(checkout, place, "sdist")


@pytest.fixture(scope="module")
def unpacked(sdist: Path) -> Path:
    """The folder that the source distribution holds."""
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent / "unpacked", filter="data")
    (folder,) = (sdist.parent / "unpacked").iterdir()
    return folder


@pytest.fixture(scope="module")
def wheel(unpacked: Path) -> Path:
    """The wheel that the source distribution builds."""
    return build(unpacked, unpacked.parents[1], "wheel")


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A folder in which the wheel is installed, without other packages."""
    target = wheel.parent / "site"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, timeout=300, env=clean_environment())
    return target


@pytest.mark.long
def test_the_source_distribution_is_complete_and_has_no_foreign_files(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    top_files = {"README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md", "CITATION.cff", "CONTRIBUTING.md", "Makefile"}
    assert source_files() - names == set()
    assert {*top_files, "pyproject.toml", "constraints.txt", "requirements.lock"} <= names
    assert not names & set(FOREIGN)
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc") or name.startswith("runs")]


@pytest.mark.long
def test_the_wheel_of_the_source_distribution_is_complete_and_works_elsewhere(
    wheel: Path, installed: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        name if name.startswith("dinomed/") else f"dinomed/{name}"
        for name in source_files()
        if name.split("/")[0] in PACKAGES
    }
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)

    script = (
        "import sys, dinomed, dinomed.apps.cli as cli; print(dinomed.__file__); "
        "dinomed.train, dinomed.scan; cli.main(sys.argv[1:])"
    )
    for arguments, text in ((["--version"], PROJECT["version"]), (["--help"], "pretrain"), (["models"], "vits14")):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True, text=True, timeout=300, cwd=tmp_path,
            env=clean_environment(PYTHONPATH=str(installed), DINOMED_CACHE=str(tmp_path / "cache")),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.startswith(str(installed))
        assert text in done.stdout


@pytest.mark.long
def test_the_source_distribution_tests_itself(unpacked: Path, installed: Path) -> None:
    """Its own tests pass with the wheel that it builds: of each package at least one, and none from this checkout."""
    (unpacked / "tests" / "test_origin.py").write_text(
        "import dinomed, dinomed.adapters, dinomed.apps, dinomed.configs, dinomed.pretrain\n\n\n"
        "def test_origin() -> None:\n"
        "    for module in (dinomed, dinomed.adapters, dinomed.apps, dinomed.configs, dinomed.pretrain):\n"
        f"        assert module.__file__.startswith({str(installed)!r})\n"
    )
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not long", *OWN_TESTS]
    done = subprocess.run(
        command, cwd=unpacked, capture_output=True, text=True, timeout=900,
        env=clean_environment(PYTHONPATH=str(installed)),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 150  # type: ignore[index]
    assert "error" not in done.stdout


def test_the_citation_names_this_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()  # required by the schema
    assert (citation["title"], citation["version"]) == (PROJECT["name"], PROJECT["version"])
    assert citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]


def test_every_relative_link_of_the_top_pages_leads_to_a_file() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        links = re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8"))
        assert [link for link in links if "://" not in link and not (ROOT / link).is_file()] == []
