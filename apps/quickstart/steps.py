"""Steps of a quickstart: calls of the Python API that are printed as commands; a finished call is not repeated."""

import contextlib
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from dinomed import __version__
from dinomed.apps.cli import command_words
from dinomed.errors import DinomedError
from dinomed.io.artifacts import hash_key
from dinomed.io.files import read_json, write_json
from dinomed.io.output_folder import STAGE
from dinomed.log import logger

STEPS_FILE = "steps.json"


class Steps:
    """The calls of one folder, with their reports and seconds, kept in ``steps.json``."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / STEPS_FILE
        self.seconds: dict[str, float] = {}
        self._key = __version__
        self._entries: dict[str, Any] = {}
        with contextlib.suppress(DinomedError):  # no file, or a damaged one: all steps are run
            self._entries = read_json(self.path)
        write_json(self.path, self._entries)  # marks the folder as one of dinomed

    def depends_on(self, text: str) -> None:
        """Add a text on which the following calls depend; they are run again if it changes."""
        self._key = hash_key(self._key, text)

    def run(
        self, command: str, function: Callable[..., Any], /, *, always: bool = False, **arguments: Any
    ) -> dict[str, Any]:
        """Print a call as a command, and run it or recall its report.

        Args:
            command: name of the command, such as ``"train segment"``.
            function: the function that the command calls; it writes to its argument `out`, if it has one.
            always: run it even if it is done, since it checks its inputs itself.
            arguments: its arguments; None means that the argument is left out.

        Returns:
            The report: the dictionary that `function` returns, or the fields of its dataclass.
        """
        line = f"dinomed {shlex.join(command_words(command.split(), arguments))}"
        logger.info(f"\n$ {line}")
        self.depends_on(line)
        arguments = {name: value for name, value in arguments.items() if value is not None}
        out: Path = arguments.get("out", self.path)
        entry = self._entries.get(line, {})
        exists, same, done = "out" in arguments and out.exists(), entry.get("key") == self._key, "report" in entry
        if same and done and not always and (exists or "out" not in arguments):
            logger.info("done already")
        else:
            if exists and same and "resume" in signature(function).parameters:
                arguments["resume"] = True
            elif exists and entry and not done and out.is_dir() and not (out / STAGE).is_dir():
                shutil.rmtree(out)  # a part of a result of this call
            elif exists:
                arguments["overwrite"] = True
            self._write(line, {"key": self._key})
            start = time.monotonic()
            result = function(**arguments)
            report = asdict(result) if is_dataclass(result) and not isinstance(result, type) else result
            report = report if isinstance(report, dict) else {}
            report = {name: str(value) if isinstance(value, Path) else value for name, value in report.items()}
            entry = {"key": self._key, "report": report, "seconds": time.monotonic() - start}
            self._write(line, entry)
        self.seconds[line] = entry["seconds"]
        return entry["report"]

    def _write(self, line: str, entry: dict[str, Any]) -> None:
        self._entries[line] = entry
        write_json(self.path, self._entries)
