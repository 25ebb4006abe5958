"""Steps of a quickstart: calls of the Python API that are printed as commands; a finished call is not repeated."""

import contextlib
import hashlib
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
        if self.path.exists():
            with contextlib.suppress(DinomedError):  # a damaged file: all steps are run again
                self._entries = read_json(self.path)
        write_json(self.path, self._entries)  # marks the folder as one of dinomed

    def depends_on(self, text: str) -> None:
        """Add a text on which the following calls depend; they are run again if it changes."""
        self._key = hashlib.sha256(f"{self._key}\n{text}".encode()).hexdigest()

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
        out = arguments.get("out")
        entry = self._entries.get(line, {})
        is_same, is_done = entry.get("key") == self._key, entry.get("report") is not None
        if is_same and is_done and not always and (out is None or Path(out).exists()):
            logger.info("done already")
            self.seconds[line] = entry["seconds"]
            return entry["report"]
        spent = entry["seconds"] if is_same and not is_done else 0.0
        if out is not None and Path(out).exists():
            can_resume = is_same and "resume" in signature(function).parameters
            if entry and not is_done and not can_resume and out.is_dir() and not (out / STAGE).is_dir():
                shutil.rmtree(out)  # a part of a result of this call
            else:
                arguments["resume" if can_resume else "overwrite"] = True
        self._write(line, None, spent)
        start = time.monotonic()
        result = function(**{name: value for name, value in arguments.items() if value is not None})
        report = result if isinstance(result, dict) else asdict(result) if is_dataclass(result) else {}  # type: ignore[arg-type]
        report = {name: str(value) if isinstance(value, Path) else value for name, value in report.items()}
        self.seconds[line] = spent + time.monotonic() - start
        self._write(line, report, self.seconds[line])
        return report

    def _write(self, line: str, report: dict[str, Any] | None, seconds: float) -> None:
        self._entries[line] = {"key": self._key, "report": report, "seconds": seconds}
        write_json(self.path, self._entries)
