"""One progress display for every long step: a bar with the time left on a terminal, a line now and then elsewhere.

Everything goes to stderr: stdout belongs to data (``--json``).
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
console = Console(stderr=True, highlight=False, soft_wrap=True)
_LINE_EVERY_S = 10.0
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence progress and notes (not warnings, not errors)."""
    global _quiet
    _quiet = quiet


def say(message: str) -> None:
    """A line for the person watching, on stderr, unless ``--quiet``."""
    if not _quiet:
        console.print(message, markup=False)


def warn(message: str) -> None:
    """A warning, on stderr, always."""
    console.print(f"warning: {message}", style="yellow", markup=False)


class Bar:
    """A running count of `total` (unknown if None); `advance` moves it, `note` shows a short text beside it."""

    _live = False  # whether one of them has the terminal

    def __init__(self, description: str, total: int | None, start: int = 0) -> None:
        self.description, self.total, self.done, self.text = description, total, start, ""
        self._began, self._start, self._spoke = time.monotonic(), start, time.monotonic()
        self._progress: Progress | None = None
        if console.is_terminal and not _quiet and not Bar._live:  # two at once would write over each other
            Bar._live = True
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console,
            )  # fmt: skip
            self._progress.start()
            self._task = self._progress.add_task(description, total=total, completed=start, note="")

    def advance(self, n: int = 1, note: str | None = None) -> None:
        self.done += n
        self.text = self.text if note is None else note
        if self._progress:
            self._progress.update(self._task, advance=n, note=self.text)
        elif time.monotonic() - self._spoke > _LINE_EVERY_S:
            self._spoke = time.monotonic()
            say(self._line())

    def _line(self) -> str:
        elapsed = time.monotonic() - self._began
        rate = (self.done - self._start) / max(elapsed, 1e-9)
        total = f"/{self.total}" if self.total is not None else ""
        left = f", {(self.total - self.done) / rate:.0f} s left" if self.total is not None and rate > 0 else ""
        return f"{self.description} {self.done}{total} in {elapsed:.0f} s{left}{'  ' + self.text if self.text else ''}"

    def close(self) -> None:
        if self._progress:
            self._progress.stop()
            Bar._live = False
        elif time.monotonic() - self._began > 2.0:
            say(self._line())


@contextmanager
def bar(description: str, total: int | None, start: int = 0) -> Iterator[Bar]:
    """``with bar("scan", 100) as b: b.advance()``"""
    it = Bar(description, total, start)
    try:
        yield it
    finally:
        it.close()


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate `items` under a bar."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(description, total) as b:
        for item in items:
            yield item
            b.advance()


if __name__ == "__main__":
    for _ in track(range(40), "demonstration"):
        time.sleep(0.05)
    print("done", file=sys.stderr)
