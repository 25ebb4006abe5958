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


@pytest.mark.long
def test_the_source_distribution_is_complete_and_its_wheel_works_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    checkout = tmp_path / "checkout"
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

    sdist = build(checkout, tmp_path, "sdist")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path / "unpacked", filter="data")
    top_files = {"README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md", "CITATION.cff", "CONTRIBUTING.md", "Makefile"}
    assert source_files() - names == set()
    assert {*top_files, "pyproject.toml", "constraints.txt", "requirements.lock"} <= names
    assert not names & set(FOREIGN)
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc") or name.startswith("runs")]

    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel = build(unpacked, tmp_path, "wheel")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    installed = {
        name if name.startswith("dinomed/") else f"dinomed/{name}"
        for name in source_files()
        if name.split("/")[0] in PACKAGES
    }
    assert {name for name in names if ".dist-info/" not in name} == installed
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)

    target = tmp_path / "site"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, timeout=300, env=clean_environment())
    script = (
        "import sys, dinomed, dinomed.apps.cli as cli; print(dinomed.__file__); "
        "dinomed.train, dinomed.scan; cli.main(sys.argv[1:])"
    )
    for arguments, expected in ((["--version"], PROJECT["version"]), (["--help"], "pretrain"), (["models"], "vits14")):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True, text=True, timeout=300, cwd=tmp_path,
            env=clean_environment(PYTHONPATH=str(target), DINOMED_CACHE=str(tmp_path / "cache")),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.startswith(str(target))
        assert expected in done.stdout


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
