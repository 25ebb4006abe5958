"""Computed files on disk that are used again only if their key and their checksums match.

An artifact is one or more files and, written after them, ``NAME.json``: its key, and the size and SHA-256 of each file.
A process that is killed leaves complete artifacts and at most one without its JSON file, which is computed again; so is
an artifact that is damaged, or that was computed from other inputs. The feature cache and the cache of a curation are
folders of artifacts; checkpoints record their files in the same way.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from dinomed.errors import DinomedError, MissingFileError
from dinomed.io.files import read_json, replacing, sha256_file, write_json
from dinomed.log import logger

Writer = Callable[[Path], Any]


def hash_key(*parts: Any) -> str:
    """Return the SHA-256, in 64 hex digits, of values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def describe_file(path: Path) -> dict[str, Any]:
    """Return the size (``bytes``) and the ``sha256`` of a file, for `check_file`."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def check_file(path: Path, expected: Mapping[str, Any]) -> None:
    """Compare a file with what `describe_file` returned when it was written; the size first, since it costs nothing.

    Raises:
        MissingFileError: the file is missing.
        DinomedError: its size or checksum does not match.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is missing")
    if path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
        raise DinomedError(f"{path} is damaged: size or checksum does not match")


class ArtifactFolder:
    """A folder of artifacts. Temporary files that a killed process left are removed when it is opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for leftover in folder.glob(".tmp-*"):
            leftover.unlink(missing_ok=True)

    def path(self, file: str) -> Path:
        """Return the path of a file of an artifact."""
        return self.folder / file

    def record_path(self, name: str) -> Path:
        """Return the path of the JSON file of an artifact."""
        return self.folder / f"{name}.json"

    def read_key(self, name: str) -> Any:
        """Return the key of an artifact that exists."""
        return read_json(self.record_path(name))["key"]

    def is_valid(self, name: str, key: Any) -> bool:
        """Return whether an artifact exists, has this key, and is unchanged. A damaged one is reported as a warning;
        one with another key is not, since other inputs are no fault."""
        record_path = self.record_path(name)
        if not record_path.is_file():
            return False
        try:
            record = read_json(record_path)
            if record.get("key") != key:
                logger.debug(f"{self.folder / name} was computed from other inputs; it is computed again")
                return False
            for file, expected in record["files"].items():
                check_file(self.path(file), expected)
        except (DinomedError, OSError, KeyError, TypeError, AttributeError) as error:
            reason = str(error) if isinstance(error, DinomedError | OSError) else f"{record_path} is damaged"
            logger.warning(f"{reason}; it is computed again")
            return False
        return True

    def write(self, name: str, key: Any, writers: Mapping[str, Writer]) -> None:
        """Write an artifact. It becomes valid with its last file, the record.

        Args:
            key: all that the content depends on, as JSON can hold it.
            writers: file name -> function that writes the file at the path that it is given.

        Raises:
            DinomedError: a file cannot be written.
        """
        self.record_path(name).unlink(missing_ok=True)  # never new files beside an old record
        for file, write in writers.items():
            with replacing(self.path(file)) as temporary:
                write(temporary)
        files = {file: describe_file(self.path(file)) for file in writers}
        write_json(self.record_path(name), {"key": key, "files": files})

    def remove_others(self, names: Collection[str], suffixes: Collection[str]) -> None:
        """Remove the files with one of `suffixes` that belong to none of the artifacts `names`."""
        kept = set(names)
        for name in names:
            kept.add(self.record_path(name).name)
            if self.record_path(name).is_file():
                kept |= set(read_json(self.record_path(name)).get("files", {}))
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name not in kept and path.suffix in {*suffixes, ".json"}:
                path.unlink()
