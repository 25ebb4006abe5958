"""The report about an artefact, and the collection of its parts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from dinomed.errors import DinomedError, MissingFileError
from dinomed.io.files import read_json
from dinomed.notice import RESEARCH_USE

State = Literal["good", "missing", "damaged", "changed", "incomplete"]
T = TypeVar("T")


@dataclass(frozen=True)
class ExaminedPart:
    """A part of an artefact, or something that it was made from.

    Attributes:
        name: the file, or a description.
        state: `good`: verified; `missing`; `damaged`: it cannot be read, or its checksum does not match; `changed`: it
            differs from the file that was recorded; `incomplete`: the command that writes it was interrupted.
        about: what was verified, or what is wrong.
        remedy: what to do; empty if the part is good.
    """

    name: str
    state: State
    about: str
    remedy: str = ""


@dataclass(frozen=True)
class ArtefactReport:
    """What `dinomed.doctor` finds about an artefact.

    Attributes:
        path: the artefact.
        kind: manifest, curated manifest, run, backbone, adapter, ensemble, index, feature cache, feature table,
            predictions, evaluation, search results, export or unfinished output.
        facts: what it holds: versions, counts, fingerprints.
        parts: its parts and what it was made from, each with its state.
        note: notice of research use.
    """

    path: str
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    parts: list[ExaminedPart] = field(default_factory=list)
    note: str = RESEARCH_USE

    @property
    def sound(self) -> bool:
        """Whether every part is good."""
        return all(part.state == "good" for part in self.parts)

    def add(self, name: str, about: str, state: State = "good", remedy: str = "") -> None:
        """Add a part."""
        self.parts.append(ExaminedPart(name, state, about, remedy))

    def check(self, name: str, read: Callable[[], T], about: Callable[[T], str] | str, remedy: str) -> T | None:
        """Add a part that `read` verifies, and return what it read; a `DinomedError` makes the part a damaged
        or a missing one.

        Args:
            name: the part.
            read: reads and verifies it.
            about: what was verified, or a function of the result that says so.
            remedy: what to do if it is damaged.
        """
        try:
            result = read()
        except DinomedError as error:
            self.add(name, str(error), "missing" if isinstance(error, MissingFileError) else "damaged", remedy)
            return None
        self.add(name, about if isinstance(about, str) else about(result))
        return result

    def file_exists(self, path: Path, remedy: str) -> bool:
        """Add a file that must exist."""
        if path.is_file():
            self.add(path.name, "is there")
            return True
        self.add(path.name, f"{path} is missing", "missing", remedy)
        return False


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds names and values.

    Raises:
        MissingFileError: the file is missing.
        DinomedError: it is no JSON or no mapping.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is missing")
    data = read_json(path)
    if not isinstance(data, dict):
        raise DinomedError(f"{path} is damaged: it is no mapping")
    return data
