"""Runs commands of dinomed one after another, shows each as a person would type it, and remembers what it reported.

Every command is run as it is printed, in this process, with ``--json``. A command that is done already, with the same
inputs and after the same commands, is not run again; one that was cut short goes on where it can.
"""

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
    """The commands of one folder; kept in ``journal.json`` there.

    Args:
        folder: where the journal is kept.
        flags: options that every command gets and that do not change its result (``--quiet``).
    """

    def __init__(self, folder: Path, flags: Sequence[str] = ()) -> None:
        self.path, self.flags = folder / JOURNAL, list(flags)
        self.commands: list[str] = []
        self.seconds: dict[str, float] = {}
        self._chain = __version__
        self._entries: dict[str, Any] = {}
        if self.path.exists():
            with contextlib.suppress(DinomedError):  # cut off: everything is done again
                self._entries = read_json(self.path)
        write_json(self.path, self._entries)  # from now on the folder is known as ours

    def depends_on(self, *inputs: str) -> None:
        """What follows is done again if any of `inputs` (hashes, texts) is another one than last time."""
        self._chain = hashlib.sha256(json.dumps([self._chain, *inputs]).encode()).hexdigest()

    def run(
        self, *arguments: Any, output: Path | None = None, always: bool = False, resume: bool = False
    ) -> dict[str, Any]:
        """Run ``dinomed ARGUMENTS``, or recall what it reported.

        Args:
            output: what the command writes; without it the command is run again, and it is overwritten if it is stale.
            always: run it even if it is done (it is quick, and looks whether its own inputs have changed).
            resume: the command has ``--resume``.
        """
        words = [str(argument) for argument in arguments]
        command = f"dinomed {shlex.join(words)}"
        logger.info(f"\n$ {command}")
        self.commands.append(command)
        if not always:
            self.depends_on(command)
        entry = self._entries.get(command, {})
        same = entry.get("key") == self._chain
        present = output is None or output.exists()
        if same and present and not always and entry.get("report") is not None:
            logger.info("done already")
            self.seconds[command] = entry["seconds"]
            return entry["report"]
        extra = [*self.flags, "--json"]
        if output is not None and output.exists():
            if entry and entry.get("report") is None and not resume:
                _remove(output)  # a part of a result, of the same command cut short
            else:
                extra.append("--resume" if resume and same else "--overwrite")
        spent = entry.get("seconds", 0.0) if same and not always else 0.0
        self._write(command, report=None, seconds=spent)
        began = time.monotonic()
        report = self._run([*words, *extra])
        self.seconds[command] = spent + time.monotonic() - began
        self._write(command, report=report, seconds=self.seconds[command])
        return report

    def _run(self, arguments: list[str]) -> dict[str, Any]:
        from dinomed.apps.cli import invoke

        stdout = io.StringIO()
        with contextlib.redirect_stdout(stdout):
            invoke(arguments)
        return json.loads(stdout.getvalue())

    def _write(self, command: str, **entry: Any) -> None:
        self._entries[command] = {"key": self._chain, **entry}
        write_json(self.path, self._entries)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
