"""Lock of the tested set (`requirements.lock`): names, versions and hashes, in agreement with the other two lists."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
CUDA = re.compile(r"nvidia-|cuda-|triton$")
"""Packages that torch pins itself, and that exist on Linux only: constraints.txt leaves them out."""
NOT_ON_THE_TESTED_SYSTEM = {
    "audioop-lts": "Python 3.13 and later",
    "colorama": "Windows",
    "httpx2-jsfetch": "a browser",
    "setuptools": "of torch; an environment has its own",
}
"""Packages of the lock that constraints.txt cannot know, each with the reason."""


def locked_requirements(text: str) -> Iterator[tuple[Requirement, list[str]]]:
    """Yield each requirement of a lock with its hashes.

    Raises:
        ValueError: a line is neither a comment, nor one pinned requirement followed by SHA-256 hashes.
    """
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    for line in filter(None, lines.splitlines()):
        match = re.fullmatch(r"([^\s;]+==[^\s;]+(?: ; [^-#]*?)?)((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", line)
        if match is None:
            raise ValueError(f"unexpected line in a lock: {line[:80]}")
        yield Requirement(match[1]), match[2].split()


def pinned_versions(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}


def test_every_line_has_a_version_and_hashes_and_there_is_no_address() -> None:
    requirements = list(locked_requirements(LOCK))
    names = [canonicalize_name(requirement.name) for requirement, _ in requirements]
    assert names == sorted(set(names))
    assert len(names) > 100
    assert "://" not in LOCK
    assert not re.search(r"--(index|extra-index|find-links|trusted)", LOCK)


@pytest.mark.parametrize(
    "line",
    [
        "torch==2.15.0",
        "torch>=2.15.0 --hash=sha256:" + "0" * 64,
        "torch==2.15.0 --hash=md5:" + "0" * 32,
        "torch @ https://example.org/torch.whl --hash=sha256:" + "0" * 64,
        "--index-url https://example.org",
    ],
)
def test_a_line_without_version_or_hash_or_with_an_address_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="unexpected line"):
        list(locked_requirements(LOCK + line + "\n"))


def test_the_lock_has_the_versions_of_the_constraints() -> None:
    locked = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin, _ in locked_requirements(LOCK)}
    constraints = pinned_versions(ROOT / "constraints.txt")
    assert {name: locked.get(name) for name in constraints} == constraints
    unknown = {name for name in locked.keys() - constraints.keys() if not CUDA.match(name)}
    assert unknown <= NOT_ON_THE_TESTED_SYSTEM.keys()


def test_the_lock_holds_all_that_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    locked = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin, _ in locked_requirements(LOCK)}
    extras = project["optional-dependencies"]
    requirements = [Requirement(text) for text in project["dependencies"]]
    waiting = ["dev"]
    while waiting:
        for requirement in map(Requirement, extras[waiting.pop()]):
            if requirement.name == "dinomed":
                waiting += sorted(requirement.extras)
            else:
                requirements.append(requirement)
    assert len(requirements) > 40
    for requirement in requirements:
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is not satisfied by the lock: {version}"


def floor_of(requirement: Requirement) -> Version:
    """The lowest version that a requirement names.

    Raises:
        ValueError: it names none, or more than one.
    """
    floors = [Version(part.version) for part in requirement.specifier if part.operator in (">=", "==", "~=")]
    if len(floors) != 1:
        raise ValueError(f"{requirement} has {len(floors)} lowest versions; give one, as in NAME>=1.2")
    return floors[0]


def test_each_requirement_has_a_lowest_version_that_is_not_above_the_tested_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tested = pinned_versions(ROOT / "constraints.txt")
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    floors = {text: floor_of(Requirement(text)) for text in texts if not text.startswith(("dinomed[", "types-"))}
    assert len(floors) > 40
    too_high = {
        text: tested[name]
        for text, floor in floors.items()
        if (name := canonicalize_name(Requirement(text).name)) in tested and floor > Version(tested[name])
    }
    assert too_high == {}


@pytest.mark.parametrize("text", ["torch", "torch<3", "torch>=2,>=2.1"])
def test_a_requirement_without_one_lowest_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give one, as in NAME"):
        floor_of(Requirement(text))


def test_the_page_names_the_lowest_versions_that_pyproject_has() -> None:
    """The ranges that were found too wide when the lowest versions were run."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = map(Requirement, [*project["dependencies"], *extras["dicom"], *extras["lora"], *extras["test"]])
    floors = {each.name: str(floor_of(each)) for each in requirements if each.name != "dinomed"}
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    part = page[
        page.index("The ranges of `pyproject.toml`") : page.index("segmentation-models-pytorch has an upper bound")
    ]
    rows = re.findall(r"^\| ([\w-]+) \| (\d[\d.]*) \|", part, re.MULTILINE)
    assert len(rows) >= 5
    assert {name: floors.get(name) for name, _ in rows} == dict(rows)
