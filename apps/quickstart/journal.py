"""A journal of dinomed commands: each is run as it is printed, in this process, and its report is remembered."""

import contextlib
import hashlib
import io
import json
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinomed import __version__
from dinomed.errors import DinomedError
from dinomed.io.files import read_json, write_json
from dinomed.log import logger

JOURNAL = "journal.json"


class Journal:
    """The commands of one folder, kept in ``journal.json``; a command done with the same inputs is not repeated.

    Args:
        folder: folder of the journal.
        flags: options of every command that do not change its result, such as ``--quiet``.
    """

    def __init__(self, folder: Path, flags: Sequence[str] = ()) -> None:
        self.path, self.flags = folder / JOURNAL, list(flags)
        self.commands: list[str] = []
        self.seconds: dict[str, float] = {}
        self._key = __version__
        self._entries: dict[str, Any] = {}
        if self.path.exists():
            with contextlib.suppress(DinomedError):  # a damaged journal: all commands are run again
                self._entries = read_json(self.path)
        write_json(self.path, self._entries)  # marks the folder as one of dinomed

    def depends_on(self, *inputs: str) -> None:
        """Add inputs (hashes or texts) of the following commands; they are run again if one of these changes."""
        self._key = hashlib.sha256(json.dumps([self._key, *inputs]).encode()).hexdigest()

    def run(
        self, *arguments: Any, output: Path | None = None, always: bool = False, resume: bool = False
    ) -> dict[str, Any]:
        """Run ``dinomed ARGUMENTS`` or recall its report.

        Args:
            output: file or folder that the command writes; the command is run again if it is missing.
            always: run the command even if it is done, since it checks its inputs itself.
            resume: the command has the option ``--resume``.

        Returns:
            The JSON report of the command.
        """
        words = [str(argument) for argument in arguments]
        command = f"dinomed {shlex.join(words)}"
        logger.info(f"\n$ {command}")
        self.commands.append(command)
        if not always:
            self.depends_on(command)
        entry = self._entries.get(command, {})
        same_inputs, is_done = entry.get("key") == self._key, entry.get("report") is not None
        if same_inputs and is_done and not always and (output is None or output.exists()):
            logger.info("done already")
            self.seconds[command] = entry["seconds"]
            return entry["report"]
        spent = entry.get("seconds", 0.0) if same_inputs and not always else 0.0
        flags = [*self.flags, "--json"]
        if output is not None and output.exists():
            if entry and not is_done and not resume:
                _remove(output)  # an incomplete result of this command
            else:
                flags.append("--resume" if resume and same_inputs else "--overwrite")
        self._write(command, report=None, seconds=spent)
        start = time.monotonic()
        report = _report_of([*words, *flags])
        self.seconds[command] = spent + time.monotonic() - start
        self._write(command, report=report, seconds=self.seconds[command])
        return report

    def _write(self, command: str, **entry: Any) -> None:
        self._entries[command] = {"key": self._key, **entry}
        write_json(self.path, self._entries)


def _report_of(arguments: list[str]) -> dict[str, Any]:
    """Run a command in this process and return the JSON that it prints."""
    from dinomed.apps.cli import invoke

    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        invoke(arguments)
    return json.loads(stdout.getvalue())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
