"""Progress display for long steps: a bar with the remaining time on a terminal, a line every ten seconds elsewhere.

Everything goes to stderr: stdout belongs to data (``--json``). In a run of several processes only rank 0 shows it.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dinomed.launched import launched_rank
from dinomed.log import console, is_quiet, logger

T = TypeVar("T")
_LINE_EVERY_S = 10.0


class Bar:
    """A running count of finished items.

    Args:
        description: what is counted, such as ``scan``.
        total: number of items; None if it is unknown.
        start: items that are done already, as after a resume.
    """

    _live = False  # whether a bar has the terminal

    def __init__(self, description: str, total: int | None, start: int = 0) -> None:
        self.description, self.total, self.done, self.text = description, total, start, ""
        self._began, self._start, self._last_line = time.monotonic(), start, time.monotonic()
        self._progress: Progress | None = None
        shown = launched_rank() == 0 and not is_quiet()
        if shown and console.is_terminal and not Bar._live:  # two at once would write over each other
            Bar._live = True
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console,
            )  # fmt: skip
            self._progress.start()
            self._task = self._progress.add_task(description, total=total, completed=start, note="")

    def advance(self, n: int = 1, note: str | None = None) -> None:
        """Count `n` more items; `note` is a short text shown beside the bar."""
        self.done += n
        self.text = self.text if note is None else note
        if self._progress:
            self._progress.update(self._task, advance=n, note=self.text)
        elif time.monotonic() - self._last_line > _LINE_EVERY_S:
            self._last_line = time.monotonic()
            logger.info(self._line())

    def _line(self) -> str:
        elapsed = time.monotonic() - self._began
        rate = (self.done - self._start) / max(elapsed, 1e-9)
        total = f"/{self.total}" if self.total is not None else ""
        left = f", {(self.total - self.done) / rate:.0f} s left" if self.total is not None and rate > 0 else ""
        return f"{self.description} {self.done}{total} in {elapsed:.0f} s{left}{'  ' + self.text if self.text else ''}"

    def close(self) -> None:
        """Release the terminal; a count that took more than two seconds leaves a last line."""
        if self._progress:
            self._progress.stop()
            Bar._live = False
        elif time.monotonic() - self._began > 2.0:
            logger.info(self._line())


@contextmanager
def bar(description: str, total: int | None, start: int = 0) -> Iterator[Bar]:
    """Open a `Bar` and close it at the end: ``with bar("scan", 100) as progress: progress.advance()``."""
    progress = Bar(description, total, start)
    try:
        yield progress
    finally:
        progress.close()


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `items` and count them in a bar; `total` is needed only where `items` has no length."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(description, total) as progress:
        for item in items:
            yield item
            progress.advance()


if __name__ == "__main__":
    for _ in track(range(40), "demonstration"):
        time.sleep(0.05)
    print("done", file=sys.stderr)
