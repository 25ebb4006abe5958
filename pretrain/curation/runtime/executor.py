"""Executors: the items of a stage are computed in this process or by Ray workers.

An executor maps work over items and yields the tables in the order of the items. The work is a value that can be sent
to another process. It reads its inputs (images, vectors) from files and returns its result; only the caller writes
files. Each artifact is therefore written once, whichever executor runs and whichever worker dies.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import pyarrow as pa

Work = Callable[[Any], pa.Table]


class Executor(Protocol):
    """Computes the items of a stage."""

    def map(self, work: Work, items: Iterable[Any]) -> Iterator[pa.Table]:
        """Yield ``work(item)`` for each item, in order."""
        ...

    def close(self) -> None:
        """Release the workers."""
        ...


class LocalExecutor:
    """Computes in this process; the work uses threads itself."""

    def map(self, work: Work, items: Iterable[Any]) -> Iterator[pa.Table]:
        """Yield ``work(item)`` for each item, in order."""
        return map(work, items)

    def close(self) -> None:
        """Do nothing: there are no workers."""


def count_processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
